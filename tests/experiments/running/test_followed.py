"""Runs of a comparison in a tracker: all in one place, named by what they are, and unchanged."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deconfound.cli import main
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.running import executors
from deconfound.experiments.running.followed import title_of
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.runs.config import RunConfig
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions
from deconfound.training.tracking import loggers
from deconfound.training.tracking.loggers import PictureLogger

CHEAP = {
    "steps": 2, "batch_size": 12, "validate_every": 2, "checkpoint_every": 2, "device": "cpu",
    "precision": "32", "threads": 1,
}  # fmt: skip


class InMemory(PictureLogger):
    name, version = "test", "abc"

    def __init__(self, points: list[int]) -> None:
        self.points = points

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert metrics
        assert step is not None
        self.points.append(step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None: ...

    def log_picture(self, name: str, file: Path, step: int) -> None: ...


@pytest.fixture
def plan(screen: Screen, tmp_path: Path) -> Path:
    """One fold, two seeds, one setting of ERM."""
    file = tmp_path / "plan.yaml"
    erm = {"screens": [str(screen.path)], "folds": ["plate=S1/P1"], "seeds": [0, 1]}
    more = {"data": {"val_fraction": 0.2}, "training": CHEAP, "methods": {"erm": {}}}
    file.write_text(yaml.safe_dump(erm | more))
    return file


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are done in this process."""

    def run_here(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        runner = Runner()
        for order in orders:
            yield runner.run(order)

    monkeypatch.setattr(executors, "run_local", run_here)


@pytest.mark.usefixtures("here")
def test_runs_are_shown_by_their_names_and_are_the_same(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, tuple[str, str | None, list[int]]] = {}
    prepared: list[tuple[str, str]] = []

    def opened(kind: str, place: str | None, out: Path, _: str | None, title: str) -> InMemory:
        shown[out.name] = title, place, []
        assert kind == "mlflow"
        return InMemory(shown[out.name][2])

    monkeypatch.setattr(loggers, "open_logger", opened)
    monkeypatch.setattr(loggers, "refuse_missing", lambda *_: None)
    monkeypatch.setattr(loggers, "prepare", lambda *words: prepared.append(words))
    compare(plan, tmp_path / "plain", quiet=True)
    assert shown == {}
    out = tmp_path / "tracked"
    compare(plan, out, CompareOptions(tracker="mlflow"), quiet=True)
    assert prepared == [("mlflow", str(out / "mlflow"))]
    names = sorted(file.name for file in (out / "runs").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "plain" / "runs").iterdir())
    assert sorted(shown) == names
    seeds = set()
    for name, (title, place, points) in shown.items():
        config = yaml.safe_load((out / "runs" / name / "config.yaml").read_text())
        seeds.add(config["seed"])
        assert title == f"erm plate=S1_P1 seed {config['seed']} {name.partition('-')[2]}"
        assert (place, points) == (str(out / "mlflow"), [2])
        for file in ("model.safetensors", "metrics.csv", "config.yaml"):
            plain = tmp_path / "plain" / "runs" / name / file
            assert (out / "runs" / name / file).read_bytes() == plain.read_bytes()
    assert seeds == {0, 1}
    tables = [pd.read_parquet(folder / "scores.parquet") for folder in (tmp_path / "plain", out)]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.usefixtures("here")
def test_a_tracker_that_fails_midway_ends_no_run(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> PictureLogger:
        raise UserError("--tracker wandb:mine: cannot be opened (no route to host)")

    monkeypatch.setattr(loggers, "open_logger", refused)
    monkeypatch.setattr(loggers, "refuse_missing", lambda *_: None)
    found = compare(plan, tmp_path / "out", CompareOptions(tracker="wandb:mine"), quiet=True)
    assert found.summary is not None
    assert (found.summary.runs, found.summary.failed) == (2, 0)
    lines = [one for one in capsys.readouterr().err.splitlines() if "--tracker" in one]
    assert len(lines) == 2
    assert lines[0].endswith("(no route to host); training goes on without it")


def test_a_tracker_that_cannot_be_had_is_one_line_and_leaves_nothing(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for word, said in (
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("wandb", "pip install 'deconfound[wandb]'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", str(plan), "--out", str(tmp_path / "out"), "--tracker", word])
        assert stopped.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_processes_share_a_real_tracker(kind: str, plan: Path, tmp_path: Path) -> None:
    pytest.importorskip(kind, reason=f"needs the extra [{kind}]")
    out = tmp_path / "out"
    found = compare(plan, out, CompareOptions(tracker=kind), quiet=True, workers=2)
    assert found.summary is not None
    assert (found.summary.runs, found.summary.failed) == (2, 0)
    notes = [json.loads(file.read_text()) for file in out.glob("runs/*/tracker.json")]
    assert [note["step"] for note in notes] == [2, 2]
    if kind == "tensorboard":
        names = [folder.name for folder in (out / kind).iterdir() if any(folder.iterdir())]
    elif kind == "wandb":
        assert len(list(out.glob("runs/*/wandb/offline-run-*"))) == 2
        return
    else:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{out.resolve()}/mlflow/mlflow.db")
        names = [client.get_run(note["run"]).info.run_name for note in notes]
    assert sorted(name.rpartition(" ")[0] for name in names) == [
        "erm plate=S1_P1 seed 0", "erm plate=S1_P1 seed 1",
    ]  # fmt: skip


def test_a_run_without_an_environment_says_so(make_config: Callable[..., RunConfig]) -> None:
    config = make_config("erm", seed=3, data={"without": "plate=S1/P2"})
    assert title_of(config, "erm-12ab") == "erm plate=S1_P1 without plate=S1_P2 seed 3 12ab"
