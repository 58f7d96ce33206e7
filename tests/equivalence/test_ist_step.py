"""Steps of IST against a loop written out from Pernice et al., optimizer state included."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.ist import Ist, IstOptions

STEPS, PAIRS, DECAY = 3, 3, 0.25
WEIGHTS = {
    "adversarial_weight": 0.5, "style_weight": 0.25, "cycle_weight": 2.0, "content_weight": 4.0,
    "content_map_weight": 0.75, "match_weight": 1.5, "r1_weight": 0.125,
}  # fmt: skip
"""Exact in float32, in which the losses of a phase are added up."""


def build(**options: Any) -> tuple[Ist, list[Batch]]:
    torch.manual_seed(0)
    method = Ist(
        IstOptions(
            form="paper",
            transfer_learning_rate=2e-3, transfer_weight_decay=0.02, average_decay=DECAY,
            **(WEIGHTS | options),
        ),
        Task(2, 16, labels=3, environments=4),
    ).double()  # fmt: skip
    batches = [
        Batch(
            torch.randn(2 * PAIRS, 2, 16, 16, dtype=torch.float64),
            torch.randint(0, 3, (2 * PAIRS,)),
            torch.randint(0, 4, (2 * PAIRS,)),
            torch.arange(2 * PAIRS),
            partners=PAIRS,
        )
        for _ in range(STEPS)
    ]
    return method.train(), batches


def code(maps: list[Tensor]) -> Tensor:
    """Eq. 1."""
    parts = [
        part
        for map in maps
        for part in (map.mean((2, 3)), (map.var((2, 3), correction=0) + 1e-5).sqrt())
    ]
    return torch.cat(parts, 1)


def normalised(map: Tensor) -> Tensor:
    sd = (map.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return (map - map.mean((2, 3), keepdim=True)) / sd


def gram(map: Tensor) -> Tensor:
    c, h, w = map.shape[1:]
    return torch.einsum("bihw,bjhw->bij", map, map) / (c * h * w)


def judged(own: Ist, image: Tensor, environment: Tensor) -> Tensor:
    taps, pooled = own.critic(image)
    logits = own.critic_heads(torch.cat([pooled, code([image, *taps])], 1))
    return torch.stack([row[e] for row, e in zip(logits, environment, strict=True)])


def written_out(
    own: Ist, batches: list[Batch], weight: dict[str, float]
) -> tuple[list[torch.optim.Optimizer], dict[str, Tensor]]:
    adam = [
        torch.optim.Adam(parameters, lr=2e-3, betas=(0.0, 0.99), weight_decay=0.02)
        for parameters in (
            [*own.critic.parameters(), *own.critic_heads.parameters()],
            [*own.generator.parameters()],
        )
    ]
    own.critic.load_state_dict(own.encoder.state_dict())
    own.critic_heads.load_state_dict(own.environment_head.state_dict())
    average = {name: p.detach().clone() for name, p in own.generator.named_parameters()}
    for frozen in (own.encoder, own.label_head):
        frozen.requires_grad_(False)
    for step, batch in enumerate(batches, start=1):
        x, s, c = batch.image[:PAIRS], batch.image[PAIRS:], batch.environment[PAIRS:]
        taps, pooled = own.encoder(x)
        style_taps, _ = own.encoder(s)
        drawn = own.generator(x, taps, code([s, *style_taps]))

        real = s.clone().requires_grad_()
        score = judged(own, real, c)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        r1 = sum(0.5 * (row**2).sum() for row in slope) / PAIRS
        fake = judged(own, drawn.detach(), c)
        critic_loss = F.binary_cross_entropy_with_logits(score, torch.ones_like(score))
        critic_loss = critic_loss + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        adam[0].zero_grad()
        (critic_loss + weight["r1_weight"] * r1).backward()
        adam[0].step()

        own.critic.requires_grad_(False)
        own.critic_heads.requires_grad_(False)
        fake = judged(own, drawn, c)
        drawn_taps, drawn_pooled = own.encoder(drawn)
        again = own.generator(drawn, drawn_taps, code([x, *taps]))
        style = sum(
            (gram(a) - gram(b)).abs().sum() / PAIRS
            for a, b in zip(drawn_taps, style_taps, strict=True)
        ) / len(taps)
        maps = sum(
            (normalised(a) - normalised(b)).abs().mean()
            for a, b in zip(drawn_taps, taps, strict=True)
        ) / len(taps)
        target = F.softmax(own.label_head(pooled), 1)
        match = -(target * F.log_softmax(own.label_head(drawn_pooled), 1)).sum(1).mean()
        total = (
            weight["adversarial_weight"]
            * F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
            + weight["style_weight"] * style
            + weight["cycle_weight"] * (x - again).abs().mean()
            + weight["content_weight"] * (x - drawn).abs().mean()
            + weight["content_map_weight"] * maps
            + weight["match_weight"] * match
        )
        adam[1].zero_grad()
        total.backward()
        adam[1].step()
        own.critic.requires_grad_(True)
        own.critic_heads.requires_grad_(True)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, p in own.generator.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return adam, average


def take(method: Ist, batches: list[Batch]) -> list[torch.optim.Optimizer]:
    _, stage = method.stages(5)
    method.begin(stage)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for batch in batches:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return optimizers


def state_of(method: Ist, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Of every parameter its value, gradient and Adam's averages."""
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    return {
        name: {"value": p.detach(), "gradient": p.grad, **states[p]}  # type: ignore[dict-item]
        for name, p in method.named_parameters()
        if p in states
    }


@pytest.mark.parametrize(
    ("adain", "output"), [("direct", "matched"), ("affine", "linear"), ("direct", "residual")]
)
def test_steps_are_those_of_the_paper(adain: str, output: str) -> None:
    method, batches = build(adain=adain, output=output)
    own = copy.deepcopy(method)
    initial = {name: p.detach().clone() for name, p in method.named_parameters()}
    adam, average = written_out(own, batches, WEIGHTS)
    expected = state_of(own, adam)
    found = state_of(method, take(method, batches))
    assert found.keys() == expected.keys()
    assert {name.split(".")[0] for name in found} == {"critic", "critic_heads", "generator"}
    for name, state in expected.items():
        for key, value in state.items():
            assert float((found[name][key] - value).abs().max()) < 1e-7, (name, key)
        if not name.startswith("critic"):
            assert not torch.allclose(state["value"], initial[name], rtol=0, atol=1e-4), name
    for name, value in average.items():
        torch.testing.assert_close(method.average.state_dict()[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_every_weight_matters(name: str) -> None:
    """The control of the test before: with another weight of one term the step is another."""
    method, batches = build()
    own = copy.deepcopy(method)
    adam, _ = written_out(own, batches[:2], WEIGHTS | {name: 0.0})
    expected = state_of(own, adam)
    found = state_of(method, take(method, batches[:2]))
    phase = "critic" if name == "r1_weight" else "generator"
    assert any(
        float((found[parameter]["gradient"] - state["gradient"]).abs().max()) > 1e-5
        for parameter, state in expected.items()
        if parameter.startswith(phase)
    )
