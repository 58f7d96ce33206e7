import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconfound import methods
from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import (
    Loss,
    Method,
    MethodOptions,
    Phase,
    Stage,
    Task,
    weighted_sum,
)


def test_methods_are_found_by_their_files() -> None:
    assert {"erm", "scbd"} <= set(methods.names())
    assert not {"base", "contract", "post_hoc"} & set(methods.names())
    assert methods.load("scbd").__name__ == "Scbd"
    with pytest.raises(UserError, match="unknown method 'scdb'; did you mean 'scbd'"):
        methods.load("scdb")
    for name in ("base", "contract"):
        with pytest.raises(UserError, match=f"unknown method '{name}'"):
            methods.load(name)


def test_the_weighted_sum_and_its_gradient() -> None:
    first, second = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = weighted_sum({"a": Loss(first), "b": Loss(second, 0.25)})
    assert total.item() == 2.75
    total.backward()
    assert first.grad is not None
    assert second.grad is not None
    assert (first.grad.item(), second.grad.item()) == (1.0, 0.25)


def test_cross_entropy_is_the_mean_over_known_targets() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, -1, 2, 1, -1, 2])
    known = target >= 0
    expected = F.cross_entropy(logits[known], target[known])
    found = cross_entropy(logits, target)
    torch.testing.assert_close(found, expected)
    gradient, wanted = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[~known] == 0).all()


def test_cross_entropy_of_nothing_known_is_0() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((4,), -1))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient == 0).all()


class Two(Method):
    """Two phases whose losses are of the same output."""

    def __init__(self) -> None:
        super().__init__(MethodOptions(), Task(1, 2, 2, 2))
        self.first = nn.Parameter(torch.tensor([1.0]))
        self.second = nn.Parameter(torch.tensor([1.0]))
        self.order: list[str] = []

    def stages(self, steps: int) -> tuple[Stage, ...]:
        phases = (
            Phase("a", [self.first], self._losses_of_first, 0.1, 0.0),
            Phase("b", [self.second], self._losses_of_second, 0.1, 0.0),
        )
        return (Stage("only", steps, phases),)

    def embed(self, image: Tensor) -> dict[str, Tensor]:
        return {"representation": image.flatten(1) * self.first.detach()}

    def _losses_of_first(self, batch: Batch, _: dict[str, Tensor]) -> dict[str, Loss]:
        self.order.append("a")
        return {"first": Loss((self.first * batch.image.sum()).square().sum(), 2.0)}

    def _losses_of_second(self, _: Batch, __: dict[str, Tensor]) -> dict[str, Loss]:
        self.order.append("b")
        return {"second": Loss((self.second - self.first).square().sum())}


def test_phases_step_in_order_and_later_ones_see_the_steps_before() -> None:
    method = Two()
    (stage,) = method.stages(1)
    batch = Batch(torch.ones(1, 1, 2, 2), *[torch.zeros(1, dtype=torch.int64)] * 3)
    optimizers = [torch.optim.SGD(phase.parameters, lr=0.01) for phase in stage.phases]
    logged = method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    assert method.order == ["a", "b"]
    assert logged["first"].item() == pytest.approx(16.0), "logged unweighted"
    first = 1 - 0.01 * 2 * 2 * 16
    assert method.first.item() == pytest.approx(first)
    # The loss of the second phase is of the first parameter after its step.
    assert logged["second"].item() == pytest.approx((1 - first) ** 2)
    assert method.second.item() == pytest.approx(1 - 0.01 * 2 * (1 - first))


def test_the_step_hands_each_phase_its_parameters() -> None:
    method = Two()
    (stage,) = method.stages(1)
    batch = Batch(torch.ones(1, 1, 2, 2), *[torch.zeros(1, dtype=torch.int64)] * 3)
    handed: list[list[nn.Parameter]] = []

    def backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
        handed.append(parameters)
        loss.backward()

    method.step(batch, stage, [p.optimizer() for p in stage.phases], backward)
    assert [[id(p) for p in one] for one in handed] == [[id(method.first)], [id(method.second)]]


def test_a_phase_is_optimised_by_adamw_at_its_own_rate() -> None:
    phase = Phase("a", [nn.Parameter(torch.ones(1))], lambda *_: {}, 0.25, 0.5)
    optimizer = phase.optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.5)
