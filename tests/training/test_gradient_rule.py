"""Steps with gradients beyond use are skipped and counted, and a run made of them ends clearly."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deconfound import methods
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import Loss, Method
from deconfound.runs.record import read_history
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.training.step import GradientRule, Stepper

MakeConfig = Callable[..., Any]
RULE = {"skip_above": 1e12, "clip_at": 1e6, "most_skipped": 3}


def gradients_of(rule: GradientRule, *values: float, loss: float = 1.0) -> list[Tensor | None]:
    parameters = [nn.Parameter(torch.zeros(())) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    rule.apply(torch.tensor(loss), parameters)
    return [parameter.grad for parameter in parameters]


def test_large_gradients_are_clipped_and_larger_ones_skipped() -> None:
    rule = GradientRule(1e12, 1e6, 3)
    small = gradients_of(rule, 3e5, -4e5)
    assert small == [torch.tensor(3e5), torch.tensor(-4e5)]
    clipped = torch.stack([g for g in gradients_of(rule, 3e9, -4e9) if g is not None])
    torch.testing.assert_close(clipped, torch.tensor([6e5, -8e5]))
    rule.end_step()
    assert rule.state() == [0, 0]
    for values, loss in (
        ((3e12, 4e12), 1.0),
        ((1.0, torch.nan), 1.0),
        ((1.0, torch.inf), 1.0),
        ((1e30, 1e30), 1.0),
        ((1.0, 1.0), torch.nan),
    ):
        assert gradients_of(rule, *values, loss=loss) == [None, None]
        assert not rule.gives_up or rule.in_a_row >= 3
        rule.end_step()
    assert rule.state() == [5, 5]
    assert rule.gives_up
    assert gradients_of(rule, 1.0) == [torch.tensor(1.0)]
    rule.end_step()
    assert rule.state() == [5, 0]
    assert not rule.gives_up


def test_without_a_rule_gradients_stay_as_they_are() -> None:
    found = gradients_of(GradientRule(None, None, 3), torch.nan, 1e30)
    assert torch.isnan(found[0])  # type: ignore[arg-type]
    assert found[1] == 1e30
    clipped = gradients_of(GradientRule(None, 2.0, 3), 30.0, 40.0)
    torch.testing.assert_close(clipped, [torch.tensor(1.2), torch.tensor(1.6)])


def test_a_skipped_phase_keeps_its_weights_and_its_averages() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    rule = GradientRule(1e3, None, 3)
    for scale in (1.0, torch.nan):
        before = parameter.detach().clone()
        loss = (scale * parameter).sum()
        optimizer.zero_grad()
        loss.backward()
        rule.apply(loss, [parameter])
        optimizer.step()
    assert torch.equal(parameter.detach(), before)
    assert torch.isfinite(optimizer.state[parameter]["exp_avg"]).all()
    assert optimizer.state[parameter]["step"] == 1


def test_a_skipped_step_leaves_nothing_in_batch_norms() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    rule = GradientRule(1e3, None, 3)
    stream = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e25, 1.0):
        before = {name: kept.clone() for name, kept in network.named_buffers()}
        rule.begin_step(network)
        loss = network(scale * torch.randn(8, 3, generator=stream)).square().mean()
        loss = loss if scale == 1 else loss * torch.nan
        loss.backward()
        rule.apply(loss, list(network.parameters()))
        rule.end_step()
        moved = [not torch.equal(kept, before[name]) for name, kept in network.named_buffers()]
        assert all(moved) if scale == 1 else not any(moved)
    assert all(torch.isfinite(kept).all() for kept in network.buffers())
    assert rule.state() == [1, 0]


@contextmanager
def nan_in_steps(patch: pytest.MonkeyPatch, *steps: int) -> Iterator[None]:
    """The losses of ERM are NaN in these steps, numbered from 0, also of a run that is resumed."""
    erm = methods.load("erm")
    losses, step_of, at = erm._losses, Stepper.step, [0]  # type: ignore[attr-defined]

    def step(stepper: Stepper, stage: Any, number: int, batch: Any) -> Any:
        at[0] = number
        return step_of(stepper, stage, number, batch)

    def diverging(method: Method, batch: Any, outputs: Any) -> dict[str, Loss]:
        found: dict[str, Loss] = losses(method, batch, outputs)
        bad = method.training and at[0] in steps
        return {n: Loss(loss.value * torch.nan) if bad else loss for n, loss in found.items()}

    with patch.context() as own:
        own.setattr(erm, "_losses", diverging)
        own.setattr(Stepper, "step", step)
        yield


def test_skipped_steps_are_counted_and_the_run_goes_on(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("erm", options=RULE, training={"steps": 12})
    with nan_in_steps(monkeypatch, 0, 1, 9, 11):
        run = fit(config, screen.path, tmp_path / "run", quiet=True)
    history = read_history(run.path / "metrics.csv")
    train = history[history["part"] == "train"].pivot(index="step", columns="name", values="value")
    assert train["skipped_steps"].to_dict() == {10: 3, 12: 4}
    assert train["cross_entropy"].isna().all()
    assert history[history["part"] == "val"]["value"].notna().all()


def test_a_run_that_skips_ends_with_the_same_bits_when_it_is_resumed(
    screen: Screen,
    make_config: MakeConfig,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between two skipped steps in a row: both counts go on where they were."""

    class Killed(BaseException):
        pass

    config = make_config("erm", options=RULE, training={"steps": 10})
    save = Training._save_resume

    def dying(training: Training) -> None:
        save(training)
        if training.position.done == 4:
            assert training.stepper.rule.state() == [2, 1]
            raise Killed

    with nan_in_steps(monkeypatch, 1, 3, 4):
        fit(config, screen.path, tmp_path / "whole", quiet=True)
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_save_resume", dying)
            with pytest.raises(Killed):
                fit(config, screen.path, tmp_path / "run", quiet=True)
        fit(config, screen.path, tmp_path / "run", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    plain = fit(make_config("erm", training={"steps": 10}), screen.path, tmp_path / "plain",
                quiet=True)  # fmt: skip
    model = "model.safetensors"
    assert (plain.path / model).read_bytes() != (tmp_path / "run" / model).read_bytes()


def test_too_many_in_a_row_end_the_run_in_one_line_and_lose_nothing(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("erm", options=RULE, training={"steps": 12})
    out = tmp_path / "run"
    for _ in range(2):  # the same command says the same again, from the last checkpoint
        with nan_in_steps(monkeypatch, 1, *range(5, 12)):
            with pytest.raises(UserError, match="3 steps in a row up to step 8 of 12") as error:
                fit(config, screen.path, out, quiet=True)
            assert "\n" not in str(error.value)
            assert "norm above 1e+12" in str(error.value)
    kept = {file.name for file in out.iterdir()}
    assert {"classifier-loss.safetensors", "resume.pt", "metrics.csv"} <= kept
    assert "model.safetensors" not in kept
    history = read_history(out / "metrics.csv")
    assert set(history[history["part"] == "val"]["step"]) == {2, 4, 6}
    assert "its checkpoints are kept" in str(error.value)
    seldom = make_config("erm", options=RULE, training={"steps": 12, "validate_every": 4})
    with nan_in_steps(monkeypatch, *range(12)), pytest.raises(UserError, match="in a row") as none:
        fit(seldom, screen.path, tmp_path / "nothing", quiet=True)
    assert "checkpoints" not in str(none.value)
    fit(config, screen.path, out, quiet=True)  # whatever was wrong is mended: it goes on
    best = json.loads((out / "selection.json").read_text())["best"]["classifier"]
    assert best["last"]["step"] == 12


def test_a_rule_that_never_acts_changes_no_bit(
    screen: Screen, make_config: MakeConfig, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = fit(make_config("erm", options=RULE), screen.path, tmp_path / "run", quiet=True).path
    model = "model.safetensors"
    assert (run / model).read_bytes() == (finished_runs("erm") / model).read_bytes()
