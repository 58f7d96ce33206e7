"""Steps of DANN against loops written out from DomainBed and from WILDS, state included."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.dann import Dann, DannOptions

LABELS, ENVIRONMENTS, STEPS = 3, 4, 7
WEIGHT = 0.5
"""Exact in float32, in which the losses of a phase are added up."""


class Reversed(torch.autograd.Function):
    """The gradient reversal layer of Ganin et al.: identity forward, −weight · gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def build(**options: Any) -> tuple[Dann, list[Batch]]:
    torch.manual_seed(0)
    method = Dann(
        DannOptions(
            learning_rate=2e-3, head_learning_rate=3e-3, discriminator_learning_rate=1e-3,
            weight_decay=0.02, discriminator_width=16, **options,
        ),
        Task(2, 24, LABELS, ENVIRONMENTS),
    ).double().train()  # fmt: skip
    batches = [
        Batch(
            torch.randn(14, 2, 24, 24, dtype=torch.float64),
            torch.randint(0, LABELS, (14,)),
            torch.randint(0, ENVIRONMENTS, (14,)),
            torch.arange(14),
        )
        for _ in range(STEPS)
    ]
    return method, batches


def adam(own: Dann, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Of the discriminator; of the encoder and the head together."""
    d = torch.optim.Adam(own.discriminator.parameters(), lr=1e-3, betas=betas, weight_decay=0.02)
    groups: list[dict[str, Any]] = [
        {"params": own.encoder.parameters(), "lr": 2e-3},
        {"params": own.head.parameters(), "lr": 3e-3},
    ]
    return [d, torch.optim.Adam(groups, betas=betas, weight_decay=0.02)]


def domainbed(
    own: Dann, batches: list[Batch], weight: float, turns: int, penalty_weight: float
) -> list[torch.optim.Optimizer]:
    disc_opt, gen_opt = optimizers = adam(own, (0.5, 0.9))
    for count, batch in enumerate(batches, start=1):
        z = own.encoder(batch.image)
        logits = own.discriminator(z)
        disc_loss = F.cross_entropy(logits, batch.environment)
        total = F.cross_entropy(logits, batch.environment, reduction="sum")
        (slope,) = torch.autograd.grad(total, z, create_graph=True)
        disc_loss = disc_loss + penalty_weight * (slope**2).sum(dim=1).mean()
        if count % (1 + turns) < turns:
            disc_opt.zero_grad()
            disc_loss.backward()
            disc_opt.step()
        else:
            loss = F.cross_entropy(own.head(z), batch.label) - weight * disc_loss
            gen_opt.zero_grad()
            loss.backward()
            gen_opt.step()
    return optimizers


def reversal(
    own: Dann, batches: list[Batch], weight: float, optimizers: list[torch.optim.Optimizer],
    of_discriminator: float = 1.0,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """A reversal layer of `weight`; the loss of both sides of it is weighed `of_discriminator`."""
    for batch in batches:
        r = own.encoder(batch.image)
        told = own.discriminator(Reversed.apply(r, weight))  # type: ignore[no-untyped-call]
        apart = F.cross_entropy(told, batch.environment)
        loss = F.cross_entropy(own.head(r), batch.label) + of_discriminator * apart
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


def take(method: Dann, batches: list[Batch]) -> list[torch.optim.Optimizer]:
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for batch in batches:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return optimizers


def state_of(method: Dann, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Of every parameter its value, gradient and Adam's averages."""
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    return {
        name: {"value": parameter.detach(), **states[parameter]}
        for name, parameter in method.named_parameters()
    }


def assert_equal(
    found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert found[name].keys() == state.keys() == {"value", "exp_avg", "exp_avg_sq", "step"}
        for key, value in state.items():
            assert float((found[name][key] - value).abs().max()) < 1e-9, (name, key)


@pytest.mark.parametrize(("turns", "penalty"), [(1, 0.0), (2, 0.0), (1, 0.75)])
def test_alternating_steps_are_those_of_domainbed(turns: int, penalty: float) -> None:
    method, batches = build(
        adversarial_weight=WEIGHT, discriminator_steps=turns, discriminator_gradient_penalty=penalty
    )
    own = copy.deepcopy(method)
    initial = {name: value.detach().clone() for name, value in own.named_parameters()}
    expected = state_of(own, domainbed(own, batches, WEIGHT, turns, penalty))
    assert_equal(state_of(method, take(method, batches)), expected)
    for name, value in initial.items():
        assert not torch.allclose(expected[name]["value"], value, rtol=0, atol=1e-5), name
    buffers = dict(method.named_buffers())
    for name, value in own.named_buffers():
        if name != "count":
            torch.testing.assert_close(buffers[name], value, rtol=0, atol=1e-12)


def test_reversal_steps_are_those_of_a_reversal_layer() -> None:
    method, batches = build(form="reversal", adversarial_weight=WEIGHT)
    own = copy.deepcopy(method)
    expected = state_of(own, reversal(own, batches, WEIGHT, adam(own, (0.9, 0.999))))
    assert_equal(state_of(method, take(method, batches)), expected)
    buffers = dict(method.named_buffers())
    for name, value in own.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=0, atol=1e-12)


def sgd(own: Dann) -> list[torch.optim.Optimizer]:
    """WILDS on Camelyon17: one SGD of momentum 0.9 with a rate for each part."""
    groups: list[dict[str, Any]] = [
        {"params": own.discriminator.parameters(), "lr": 1e-3},
        {"params": own.encoder.parameters(), "lr": 2e-3},
        {"params": own.head.parameters(), "lr": 3e-3},
    ]
    return [torch.optim.SGD(groups, momentum=0.9, weight_decay=0.02)]


def test_steps_by_the_recipe_of_wilds() -> None:
    """The reversal layer's coefficient is 1 there, and the weight multiplies the whole term."""
    method, batches = build(
        form="reversal", adversarial_weight=WEIGHT, weigh_discriminator=True,
        optimizer="sgd", momentum=0.9,
    )  # fmt: skip
    own, other = copy.deepcopy(method), copy.deepcopy(method)
    reversal(own, batches, 1.0, sgd(own), WEIGHT)
    take(method, batches)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=0, atol=1e-9)
    reversal(other, batches, WEIGHT, sgd(other))  # the discriminator's own loss as it is
    assert not torch.allclose(other.discriminator[0].weight, own.discriminator[0].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["alternating", "reversal"])
def test_the_weight_matters(form: str) -> None:
    """The control of the tests before: another lambda is another step."""
    method, batches = build(form=form, adversarial_weight=WEIGHT)
    own = copy.deepcopy(method)
    if form == "alternating":
        domainbed(own, batches, 0.25, 1, 0)
    else:
        reversal(own, batches, 0.25, adam(own, (0.9, 0.999)))
    take(method, batches)
    name = "encoder.network.0.weight"
    assert not torch.allclose(method.get_parameter(name), own.get_parameter(name), atol=1e-6)
