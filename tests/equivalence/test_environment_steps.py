"""Steps of CORAL, IRM, GroupDRO and Fish against loops written out from their papers."""

import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.methods import load
from deconfound.methods.contract import Method, Task

LABELS, ENVIRONMENTS, STEPS, RATE = 4, 3, 4, 2e-3
ADAM = {"optimizer": "adam", "learning_rate": RATE, "weight_decay": 0.0}
Optimizer = torch.optim.Optimizer
Written = Callable[[Method, list[Batch]], Optimizer]


def batches(absent: int | None = None) -> list[Batch]:
    """Unequal environments in no order, a few codes missing; `absent` is not in the last ones."""
    made = []
    for step in range(STEPS):
        environment = torch.arange(45) * 7 % 11 % ENVIRONMENTS
        if absent is not None and step >= STEPS // 2:
            environment = environment.where(environment != absent, (absent + 1) % ENVIRONMENTS)
        label = torch.randint(0, LABELS, (45,))
        label[step], environment[step + 5] = -1, -1
        image = torch.randn(45, 6, dtype=torch.float64) + label[:, None]
        made.append(Batch(image, label, environment, torch.arange(45)))
    return made


def build(name: str, **options: Any) -> Method:
    torch.manual_seed(0)
    kind = load(name)
    method = kind(kind.Options(**(ADAM | options)), Task(6, None, LABELS, ENVIRONMENTS))
    return method.double().train()


def train(method: Method, given: list[Batch]) -> Optimizer:
    """The stages as the training loop takes them; returns the last optimizer."""
    left = iter(given)
    for stage in method.stages(STEPS):
        (optimizer,) = [phase.optimizer() for phase in stage.phases]
        for _ in range(stage.steps):
            method.step(next(left), stage, [optimizer], lambda loss, _: loss.backward())
    return optimizer


def assert_same(name: str, written: Written, given: list[Batch], **options: Any) -> None:
    """Weights, buffers, gradients and the state of the optimizer end the same."""
    method = build(name, **options)
    other = copy.deepcopy(method)
    found, wanted = train(method, given), written(other, given)
    values = [
        (one.state_dict(), [p.grad for p in one.parameters()], optimizer.state_dict()["state"])
        for one, optimizer in ((method, found), (other, wanted))
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=1e-10)


def assert_differ(name: str, written: Written, given: list[Batch], **options: Any) -> None:
    with pytest.raises(AssertionError, match="not close"):
        assert_same(name, written, given, **options)


def logits_and_features(method: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    features = method.encoder(image)
    return features @ method.head.weight.T + method.head.bias, features


def rows_of(batch: Batch, environment: int, labelled: bool = True) -> Tensor:
    own = batch.environment == environment
    return (own & (batch.label >= 0) if labelled else own).nonzero()[:, 0]


def coral(weight: float) -> Written:
    def written(method: Method, given: list[Batch]) -> Optimizer:
        optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
        for batch in given:
            logits, features = logits_and_features(method, batch.image)
            known = batch.label >= 0
            loss = F.cross_entropy(logits[known], batch.label[known])
            pairs = []
            for i, j in combinations(range(ENVIRONMENTS), 2):
                x, y = (features[rows_of(batch, e, labelled=False)] for e in (i, j))
                centred_x, centred_y = x - x.mean(0, keepdim=True), y - y.mean(0, keepdim=True)
                covariance_x = centred_x.T @ centred_x / (len(x) - 1)
                covariance_y = centred_y.T @ centred_y / (len(y) - 1)
                pairs.append(
                    ((x.mean(0) - y.mean(0)) ** 2).mean()
                    + ((covariance_x - covariance_y) ** 2).mean()
                )
            optimizer.zero_grad()
            (loss + weight * sum(pairs) / len(pairs)).backward()  # type: ignore[operator]
            optimizer.step()
        return optimizer

    return written


def irm(weight: float, anneal: int, anew: bool = True) -> Written:
    """Derivatives by the scale from autograd, twice differentiated."""

    def written(method: Method, given: list[Batch]) -> Optimizer:
        optimizer: Optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
        for step, batch in enumerate(given):
            if step == anneal and anew:
                optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
            logits, _ = logits_and_features(method, batch.image)
            losses, penalties = [], []
            for environment in range(ENVIRONMENTS):
                rows = rows_of(batch, environment)
                losses.append(F.cross_entropy(logits[rows], batch.label[rows]))
                scale = torch.ones((), dtype=torch.float64, requires_grad=True)
                halves = [
                    F.cross_entropy(scale * logits[rows[half::2]], batch.label[rows[half::2]])
                    for half in (0, 1)
                ]
                slopes = [torch.autograd.grad(h, scale, create_graph=True)[0] for h in halves]
                penalties.append(slopes[0] * slopes[1])
            loss, penalty = torch.stack(losses).mean(), torch.stack(penalties).mean()
            optimizer.zero_grad()
            (loss + (weight if step >= anneal else 1.0) * penalty).backward()
            optimizer.step()
        return optimizer

    return written


def groupdro(eta: float, form: str) -> Written:
    def written(method: Any, given: list[Batch]) -> Optimizer:
        optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
        q = torch.ones(ENVIRONMENTS, dtype=torch.float64)
        if form == "wilds":
            q /= ENVIRONMENTS
        for batch in given:
            logits, _ = logits_and_features(method, batch.image)
            present = [e for e in range(ENVIRONMENTS) if len(rows_of(batch, e))]
            losses = torch.zeros(ENVIRONMENTS, dtype=torch.float64)
            for e in present:
                rows = rows_of(batch, e)
                losses[e] = F.cross_entropy(logits[rows], batch.label[rows])
                q[e] *= torch.exp(eta * losses[e].detach())
            q /= q.sum()
            loss = (
                losses @ q if form == "wilds" else losses[present] @ (q / q[present].sum())[present]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        method.q.copy_(q)
        return optimizer

    return written


def fish(epsilon: float, inner: Callable[[Any], Optimizer], carried: bool = True) -> Written:
    """A clone for the inner steps, and an optimizer over it with the state of the one before."""

    def written(method: Any, given: list[Batch]) -> Optimizer:
        optimizer = inner(method.parameters())
        state = optimizer.state_dict()
        for batch in given:
            clone = copy.deepcopy(method)
            optimizer = inner(clone.parameters())
            if carried:
                optimizer.load_state_dict(copy.deepcopy(state))
            for environment in range(ENVIRONMENTS):
                rows = rows_of(batch, environment)
                optimizer.zero_grad()
                logits, _ = logits_and_features(clone, batch.image[rows])
                F.cross_entropy(logits, batch.label[rows]).backward()
                optimizer.step()
            state = optimizer.state_dict()
            led = clone.state_dict()
            for name, value in method.state_dict().items():
                counter = not value.is_floating_point()  # of batches, without effect
                value.copy_(led[name] if counter else value + epsilon * (led[name] - value))
        for own, cloned in zip(method.parameters(), clone.parameters(), strict=True):
            own.grad = cloned.grad
        return optimizer

    return written


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=RATE)


def test_coral() -> None:
    given = batches()
    assert_same("coral", coral(1.0), given)
    assert_same("coral", coral(10.0), given, penalty_weight=10)
    assert_differ("coral", coral(1.1), given)  # another weight is another step


def test_irm() -> None:
    given = batches()
    assert_same("irm", irm(100.0, 1), given)  # a third of the steps, then 100
    assert_same("irm", irm(10.0, 3), given, penalty_weight=10, anneal_steps=3)
    assert_same("irm", irm(3.0, 0), given, penalty_weight=3, anneal_steps=0)
    assert_differ("irm", irm(100.0, 2), given)  # a step later
    assert_differ("irm", irm(100.0, 1, anew=False), given)  # the optimizer goes on


@pytest.mark.parametrize("form", ["domainbed", "wilds"])
def test_groupdro(form: str) -> None:
    given = batches(absent=1)
    assert_same("groupdro", groupdro(0.01, form), given, form=form)
    assert_same("groupdro", groupdro(1.0, form), given, form=form, eta=1.0)
    assert_differ("groupdro", groupdro(0.0, form), given, form=form)  # constant weights
    other = "wilds" if form == "domainbed" else "domainbed"
    assert_differ("groupdro", groupdro(0.01, other), given, form=form)


def test_fish() -> None:
    given = batches()
    assert_same("fish", fish(0.5, adam), given)
    assert_same("fish", fish(0.1, adam), given, meta_learning_rate=0.1)
    assert_differ("fish", fish(0.6, adam), given)  # another part of the way
    assert_differ("fish", fish(0.5, adam, carried=False), given)  # the inner state starts anew


def test_fish_of_its_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three environments drawn, in their order: the rest is ε = 0.3 / 3 and inner SGD."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.arange(shape[-1])[None] / 9)

    def sgd(parameters: Any) -> Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    options = {
        "form": "authors", "meta_learning_rate": 0.3, "meta_steps": 3, "optimizer": "sgd",
        "momentum": 0.9, "learning_rate": 0.01,
    }  # fmt: skip
    given = batches()
    assert_same("fish", fish(0.1, sgd), given, **options)
    assert_differ("fish", fish(0.3, sgd), given, **options)  # the rate is divided


def test_fish_with_a_whole_step_is_training_on_the_environments_in_turn() -> None:
    def written(method: Method, given: list[Batch]) -> Optimizer:
        optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
        for batch in given:
            for environment in range(ENVIRONMENTS):
                rows = rows_of(batch, environment)
                optimizer.zero_grad()
                logits, _ = logits_and_features(method, batch.image[rows])
                F.cross_entropy(logits, batch.label[rows]).backward()
                optimizer.step()
        return optimizer

    assert_same("fish", written, batches(), meta_learning_rate=1.0)


def test_the_loops_differ_from_plain_training() -> None:
    """The control of all: none of the four is ERM."""

    def erm(method: Method, given: list[Batch]) -> Optimizer:
        optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
        for batch in given:
            logits, _ = logits_and_features(method, batch.image)
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.label, ignore_index=-1).backward()
            optimizer.step()
        return optimizer

    given = batches()
    assert_same("erm", erm, given)
    for name in ("coral", "irm", "groupdro", "fish"):
        assert_differ(name, erm, given)
