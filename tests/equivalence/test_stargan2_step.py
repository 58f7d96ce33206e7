"""Steps of StarGAN v2 against a loop written out from its paper, state included."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.stargan2 import StarGan2, StarGan2Options

STEPS, SIZE, LATENT, ENVIRONMENTS = 3, 6, 5, 4
STYLE, DIVERSITY, CYCLE, R1 = 0.5, 2.0, 0.25, 4.0
"""Exact in float32, in which the losses of a phase are added up; so are the shares of 4 steps."""
FADES = 4
NETWORKS = ("generator", "style_encoder", "mapping", "discriminator")


def build(**options: Any) -> tuple[StarGan2, list[Batch]]:
    torch.manual_seed(0)
    method = StarGan2(
        StarGan2Options(
            learning_rate=2e-3, mapping_learning_rate=1e-3, weight_decay=0.02, width=4, max_width=6,
            mapping_width=7, style_size=6, latent_size=LATENT, style_weight=STYLE,
            cycle_weight=CYCLE, r1_weight=R1,
            **({"diversity_weight": DIVERSITY, "diversity_steps": FADES} | options),
        ),
        Task(2, 16, 3, ENVIRONMENTS),
    ).double().train()  # fmt: skip
    batches = []
    for _ in range(STEPS):
        own, target = torch.randint(0, ENVIRONMENTS, (2, SIZE))
        environment = torch.cat([own, target, target])
        image = torch.randn(3 * SIZE, 2, 16, 16, dtype=torch.float64)
        rows = torch.arange(3 * SIZE)
        batches.append(Batch(image, rows % 3, environment, rows, partners=2 * SIZE))
    return method, batches


def written_out(own: StarGan2, batches: list[Batch]) -> dict[nn.Parameter, Any]:
    """The paper's iteration, with gradients wherever they go and only the right ones used."""
    nets = {name: getattr(own, name) for name in NETWORKS}
    g, e, f, d = nets.values()
    optims = {
        name: torch.optim.Adam(net.parameters(), lr=1e-3 if name == "mapping" else 2e-3,
                               betas=(0.0, 0.99), weight_decay=0.02)
        for name, net in nets.items()
    }  # fmt: skip
    ema = {name: copy.deepcopy(nets[name]) for name in NETWORKS[:3]}
    lambda_ds = DIVERSITY

    def descend(loss: Tensor, *names: str) -> None:
        for optim in optims.values():
            optim.zero_grad()
        loss.backward()
        for name in names:
            optims[name].step()

    def bce(logits: Tensor, target: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def d_loss(x: Tensor, y: Tensor, target: Tensor, style: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        out = d(x, y)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        r1 = 0.5 * slope.pow(2).reshape(len(x), -1).sum(1).mean()
        fake = g(x.detach(), style.detach()).detach()
        return bce(out, 1) + bce(d(fake, target), 0) + R1 * r1

    def g_loss(x: Tensor, y: Tensor, target: Tensor, s1: Tensor, s2: Tensor) -> Tensor:
        fake = g(x, s1)
        sty = (e(fake, target) - s1).abs().mean()
        ds = (fake - g(x, s2).detach()).abs().mean()
        cyc = (g(fake, e(x, y)) - x).abs().mean()
        return bce(d(fake, target), 1) + STYLE * sty - lambda_ds * ds + CYCLE * cyc

    for step, batch in enumerate(batches):
        x, ref1, ref2 = batch.image.split(SIZE)
        y, target, _ = batch.environment.split(SIZE)
        torch.manual_seed(step)
        z1, z2 = torch.randn(2, SIZE, LATENT, dtype=torch.float64)
        descend(d_loss(x, y, target, f(z1, target)), "discriminator")
        descend(d_loss(x, y, target, e(ref1, target)), "discriminator")
        kept = [p.grad.clone() for p in d.parameters()]
        latent = g_loss(x, y, target, f(z1, target), f(z2, target))
        descend(latent, "generator", "style_encoder", "mapping")
        moved = [p.grad.clone() for p in f.parameters()]
        reference = g_loss(x, y, target, e(ref1, target), e(ref2, target))
        descend(reference, "generator")
        for net, gradients in ((d, kept), (f, moved)):
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                p.grad = gradient
        for p in e.parameters():
            p.grad = None
        decay = min(0.999, (1 + step) / (10 + step))
        for name, average in ema.items():
            for slow, fast in zip(average.parameters(), nets[name].parameters(), strict=True):
                slow.data = slow.data * decay + fast.data * (1 - decay)
        lambda_ds -= DIVERSITY / FADES
    for name, average in ema.items():
        getattr(own, f"average_{name}").load_state_dict(average.state_dict())
    return {p: state for optim in optims.values() for p, state in optim.state.items()}


def take(method: StarGan2, batches: list[Batch]) -> dict[nn.Parameter, Any]:
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return {p: state for optimizer in optimizers for p, state in optimizer.state.items()}


def test_steps_are_those_written_out() -> None:
    method, batches = build()
    own = copy.deepcopy(method)
    initial = {name: value.detach().clone() for name, value in own.named_parameters()}
    wanted, found = written_out(own, batches), take(method, batches)
    others = dict(own.named_parameters())
    for name, parameter in method.named_parameters():
        other = others[name]
        assert float((parameter - other).detach().abs().max()) < 1e-9, name
        assert not torch.allclose(parameter, initial[name], rtol=0, atol=1e-5), name
        if other.grad is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert float((parameter.grad - other.grad).abs().max()) < 1e-9, name
        state = wanted[other]
        assert found[parameter].keys() == state.keys() == {"exp_avg", "exp_avg_sq", "step"}
        for key, value in state.items():
            assert float((found[parameter][key] - value).abs().max()) < 1e-9, (name, key)
        twice = name.startswith(("generator", "discriminator"))
        assert int(state["step"]) == (2 * STEPS if twice else STEPS), name
    averages = dict(own.named_buffers())
    for name, value in method.named_buffers():
        if name != "count":
            torch.testing.assert_close(value, averages[name], rtol=0, atol=1e-9)
            trained = method.get_parameter(name.removeprefix("average_"))
            assert not torch.allclose(value, trained, rtol=0, atol=1e-7), name


@pytest.mark.parametrize("other", [{"diversity_weight": 1.0}, {"diversity_steps": 8}])
def test_the_diversity_term_and_its_decay_matter(other: dict[str, Any]) -> None:
    """The control of the test before."""
    method, batches = build()
    take(method, batches)
    changed, _ = build(**other)
    take(changed, batches)
    name = "generator.to_image.2.weight"
    assert not torch.allclose(method.get_parameter(name), changed.get_parameter(name), atol=1e-6)
