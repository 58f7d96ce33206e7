from typing import Any

import pytest
import torch

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.methods.fish import Fish, FishOptions


def built(environments: int = 4, **options: Any) -> Fish:
    torch.manual_seed(0)
    return Fish(FishOptions(**options), Task(3, None, 2, environments)).train()


def batch_of(environments: list[int], label: int | None = None) -> Batch:
    rows = torch.arange(len(environments))
    labels = rows % 2 if label is None else torch.full_like(rows, label)
    return Batch(torch.randn(len(rows), 3), labels, torch.tensor(environments), rows)


def visited(method: Fish, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The environments of the inner steps of one step."""
    found: list[int] = []
    outputs = method.outputs

    def watched(own: Batch, stage: str) -> dict[str, torch.Tensor]:
        (environment,) = own.environment.unique().tolist()
        assert (own.label >= 0).all()
        found.append(environment)
        return outputs(own, stage)

    monkeypatch.setattr(method, "outputs", watched)
    *_, stage = method.stages(2)
    (phase,) = stage.phases
    method.step(batch, stage, [phase.optimizer()], lambda loss, _: loss.backward())
    return found


def test_all_environments_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([3, 3, 0, 0, -1, -1, 1, 1, 1])
    assert visited(built(), batch, monkeypatch) == [0, 1, 3]


def test_an_environment_of_one_row_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visited(built(), batch_of([2, 1, 1, 0, 0]), monkeypatch) == [0, 1]
    with pytest.raises(UserError, match=r"2 labelled images in the batch.*raise --batch-size"):
        visited(built(), batch_of([2, 1, 0]), monkeypatch)


def test_the_authors_draw_environments_anew_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method = built(form="authors", meta_steps=2)
    batch = batch_of([0, 1, 2, 3] * 3)
    drawn = [tuple(visited(method, batch, monkeypatch)) for _ in range(40)]
    assert {len(set(pair)) for pair in drawn} == {2}
    assert {environment for pair in drawn for environment in pair} == {0, 1, 2, 3}
    assert any(pair[0] > pair[1] for pair in drawn)


@pytest.mark.parametrize(("environment", "label"), [(-1, None), (0, -1)])
def test_a_batch_that_tells_nothing_changes_nothing(
    environment: int, label: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = built()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert visited(method, batch_of([environment] * 6, label), monkeypatch) == []
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_pretraining_is_a_stage_of_erm() -> None:
    first, second = built(pretrain_steps=30).stages(50)
    assert (first.name, first.steps) == ("pretraining", 30)
    assert (second.name, second.steps, second.continues) == ("fish", 20, False)
    (only,) = built().stages(50)
    assert (only.name, only.steps) == ("fish", 50)
    with pytest.raises(UserError, match="--pretrain-steps 50: leaves none of 50 steps"):
        built(pretrain_steps=50).stages(50)


def test_pretraining_goes_all_the_way() -> None:
    method = built(pretrain_steps=1, meta_learning_rate=1e-9, optimizer="sgd")
    first, second = method.stages(2)
    batch, moved = batch_of([0, 0, 1, 1]), []
    for stage in (first, second):
        before = method.head.weight.detach().clone()
        optimizers = [phase.optimizer() for phase in stage.phases]
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        moved.append(float((method.head.weight.detach() - before).norm()))
    assert moved[0] > 1e-4
    assert moved[1] < 1e-8


def test_more_environments_a_step_than_training_has_are_refused() -> None:
    with pytest.raises(UserError, match="--meta-steps 3: training has 2 environments; lower it"):
        built(environments=2, form="authors")
    built(environments=2)


@pytest.mark.parametrize("cached", [True, False])
def test_in_lower_precision_every_inner_step_sees_the_weights_of_the_one_before(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast keeps weights that it has cast until it ends; the update moves on without them."""
    method, batch = built(learning_rate=0.1), batch_of([0] * 8 + [1] * 8)
    *_, stage = method.stages(2)
    (phase,) = stage.phases
    seen: list[torch.Tensor] = []
    outputs = method.outputs

    def watched(own: Batch, stage: str) -> dict[str, torch.Tensor]:
        found = outputs(own, stage)
        first = next(method.parameters())
        cast = torch.nn.functional.linear(torch.eye(3), first)
        seen.append((cast.float().T - first).detach().abs().max())
        return found

    monkeypatch.setattr(method, "outputs", watched)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        method.step(batch, stage, [phase.optimizer()], lambda loss, _: loss.backward())
    assert len(seen) == 2
    assert max(seen) < 0.01
