"""Steps of SCBD against a loop written out from Makino et al., with the losses of their listing."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.scbd import Scbd, ScbdOptions

ENVIRONMENTS, LABELS, STEPS, TEMPERATURE = 3, 4, 3, 0.1


def listing_supcon(z: Tensor, u: Tensor) -> Tensor:
    """Appendix B: log-softmax over the whole row, a cross-entropy over it, mean over anchors."""
    positive = (u[:, None] == u[None, :]).to(z) * (1.0 - torch.eye(len(z)).to(z))
    p = positive / positive.sum(1, keepdim=True).clamp(min=1.0)
    return F.cross_entropy(F.log_softmax(z @ z.T / TEMPERATURE, dim=1), p)


def listing_invariance(z: Tensor, e: Tensor) -> Tensor:
    positive = (e[:, None] == e[None, :]).to(z)
    negative = 1.0 - positive
    positive = positive * (1.0 - torch.eye(len(z)).to(z))
    q = F.log_softmax(z @ z.T / TEMPERATURE, dim=1)
    return ((q * positive).mean(1) - (q * negative).mean(1)).abs().mean()


def project(layers: nn.Sequential, r: Tensor) -> Tensor:
    first, _, second = layers
    hidden = F.gelu(r @ first.weight.T + first.bias)  # type: ignore[union-attr, operator]
    z = hidden @ second.weight.T + second.bias  # type: ignore[union-attr, operator]
    return z / z.norm(dim=1, keepdim=True)


def written_out(method: Scbd, batches: list[Batch], alpha: float) -> Scbd:
    """The paper's training loop: two optimizers, decoder and probes on detached features."""
    own = copy.deepcopy(method)
    options = own.options
    auxiliary: list[dict[str, Any]] = [
        {"params": [*own.label_probe.parameters(), *own.environment_probes.parameters()],
         "lr": options.probe_learning_rate},
        {"params": [*own.decoder.parameters(), *own.likelihood.parameters()],  # type: ignore[union-attr]
         "lr": options.decoder_learning_rate},
    ]  # fmt: skip
    supcon_nets = [
        own.content_encoder, own.content_projection, own.style_encoder, own.style_projection,
    ]  # fmt: skip
    main_optimizer = torch.optim.AdamW(
        [p for net in supcon_nets for p in net.parameters()],
        lr=options.learning_rate, weight_decay=options.weight_decay,
    )  # fmt: skip
    auxiliary_optimizer = torch.optim.AdamW(auxiliary, weight_decay=options.weight_decay)
    for batch in batches:
        x, y, e = batch.image, batch.label, batch.environment
        r_c, r_s = own.content_encoder(x), own.style_encoder(x)
        z_c = project(own.content_projection.layers, r_c)
        z_s = project(own.style_projection.layers, r_s)
        loss = listing_supcon(z_c, y) + listing_supcon(z_s, y * ENVIRONMENTS + e)
        main_optimizer.zero_grad()
        (loss + alpha * listing_invariance(z_c, e)).backward()
        main_optimizer.step()

        r_c, z_c, z_s = r_c.detach(), z_c.detach(), z_s.detach()
        probes = own.environment_probes
        decoder, log_sd = own.decoder, own.likelihood.log_sd
        mean = decoder.to_image(decoder.content_branch(z_c) + decoder.style_branch(z_s))  # type: ignore[union-attr, operator]
        sd = torch.exp(log_sd)  # type: ignore[arg-type]
        log_likelihood = torch.distributions.Normal(mean, sd).log_prob(x).mean()
        auxiliary_loss = (
            F.cross_entropy(own.label_probe(r_c), y)
            + F.cross_entropy(probes["representation"](r_c), e)
            + F.cross_entropy(probes["content"](z_c), e)
            + F.cross_entropy(probes["style"](z_s), e)
            - log_likelihood
        )
        auxiliary_optimizer.zero_grad()
        auxiliary_loss.backward()
        auxiliary_optimizer.step()
    return own


def written_out_jointly(
    method: Scbd, batches: list[Batch], alpha: float, weight: float
) -> tuple[Scbd, torch.optim.Optimizer]:
    """One optimizer for encoders and decoder, whose gradient reaches both blocks; no probes."""
    own = copy.deepcopy(method)
    nets = [
        own.content_encoder, own.content_projection, own.style_encoder, own.style_projection,
        own.decoder, own.likelihood,
    ]  # fmt: skip
    options = own.options
    optimizer = torch.optim.AdamW(
        [p for net in nets for p in net.parameters()],  # type: ignore[union-attr]
        lr=options.learning_rate, weight_decay=options.weight_decay,
    )  # fmt: skip
    for batch in batches:
        x, y, e = batch.image, batch.label, batch.environment
        z_c = project(own.content_projection.layers, own.content_encoder(x))
        z_s = project(own.style_projection.layers, own.style_encoder(x))  # type: ignore[union-attr, misc]
        mean = own.decoder.to_image(own.decoder.content_branch(z_c) + own.decoder.style_branch(z_s))  # type: ignore[union-attr]
        sd = torch.exp(own.likelihood.log_sd)  # type: ignore[arg-type]
        loss = (
            listing_supcon(z_c, y)
            + listing_supcon(z_s, y * ENVIRONMENTS + e)
            + alpha * listing_invariance(z_c, e)
            - weight * torch.distributions.Normal(mean, sd).log_prob(x).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return own, optimizer


def build(alpha: float, **changes: Any) -> tuple[Scbd, list[Batch]]:
    torch.manual_seed(0)
    given = {"decoder": "beside"} | changes
    options = ScbdOptions(
        alpha=alpha, invariance="listing", style_target="pair", **given,
        decoder_width=8, block_size=16, learning_rate=2e-3, weight_decay=0.05,
        decoder_learning_rate=3e-3, probe_learning_rate=5e-3, temperature=TEMPERATURE,
    )  # fmt: skip
    method = Scbd(options, Task(2, 32, LABELS, ENVIRONMENTS)).double().train()
    batches = [
        Batch(
            torch.randn(24, 2, 32, 32, dtype=torch.float64),
            torch.randint(0, LABELS, (24,)),
            torch.randint(0, ENVIRONMENTS, (24,)),
            torch.arange(24),
        )
        for _ in range(STEPS)
    ]
    return method, batches


@pytest.mark.parametrize("alpha", [0.0, 192.0])
def test_steps_are_those_of_the_paper(alpha: float) -> None:
    method, batches = build(alpha)
    expected = dict(written_out(method, batches, alpha).named_parameters())
    initial = {name: value.detach().clone() for name, value in method.named_parameters()}
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for batch in batches:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    for name, value in method.named_parameters():
        # The decoded image is taken in float32, so decoder parameters agree to its precision.
        close = 1e-5 if name.startswith(("decoder", "likelihood")) else 1e-9
        assert not torch.allclose(value, initial[name], rtol=0, atol=1e-5), name
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=close, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_weight_of_the_invariance_loss_matters() -> None:
    """The control of the test before: another alpha is another step."""
    method, batches = build(192.0)
    expected = dict(written_out(method, batches, 100.0).named_parameters())
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for batch in batches:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    name = "content_projection.layers.2.weight"
    assert not torch.allclose(method.get_parameter(name), expected[name], rtol=0, atol=1e-5)


def test_steps_with_a_joint_decoder_are_those_of_one_optimizer() -> None:
    method, batches = build(8.0, decoder="joint", decoder_weight=2.0)
    own, reference = written_out_jointly(method, batches, 8.0, 2.0)
    expected = dict(own.named_parameters())
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for batch in batches:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    state = optimizers[0].state
    for name, value in method.named_parameters():
        if "probe" in name:
            continue
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                state[value][key], reference.state[expected[name]][key], rtol=0, atol=1e-9
            )
