"""Trackers follow a run, change no bit of it, and have each step once, whenever it is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deconfound.cli import main
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.reports.tracked import show_pictures
from deconfound.runs.config import RunConfig, dump_config
from deconfound.runs.record import read_history
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.training.tracking import loggers
from deconfound.training.tracking.loggers import PictureLogger
from deconfound.training.tracking.tracker import FILE, KINDS, Tracker
from deconfound.training.tracking.wandb_log import logged

MakeConfig = Callable[..., RunConfig]


class Store:
    """What a tracker has received, over all processes."""

    def __init__(self) -> None:
        self.opened: list[str | None] = []
        self.points: list[tuple[int, str, float]] = []
        self.options: dict[str, Any] = {}
        self.pictures: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.ended: list[str] = []
        self.broken = False

    def open(
        self, kind: str, place: str | None, out: Path, run: str | None, title: str
    ) -> PictureLogger:
        assert (kind, place, out.name, title) == ("wandb", "mine", "run", "run")
        self.opened.append(run)
        return InMemory(self)


class InMemory(PictureLogger):
    name, version = "test", "abc"

    def __init__(self, store: Store) -> None:
        self.store = store

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.store.broken:
            raise ConnectionError("no route\nto host")
        assert step is not None
        self.store.points += [(step, name, value) for name, value in metrics.items()]

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        assert isinstance(params, dict)
        self.store.options |= params

    def log_picture(self, name: str, file: Path, step: int) -> None:
        self.store.pictures[name] = step, np.asarray(Image.open(file)).shape

    def finalize(self, status: str) -> None:
        self.store.ended.append(status)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(loggers, "open_logger", made.open)
    return made


class Killed(BaseException):
    """Stands for a process that ends here."""


def expected_points(run: Path, stages: dict[str, int]) -> list[tuple[int, str, float]]:
    """What metrics.csv has, as a tracker is to have it; `stages` are the steps before each."""
    several = len(stages) > 1
    return sorted(
        (stages[stage] + step, f"{stage}/{part}/{name}" if several else f"{part}/{name}", value)
        for stage, step, part, name, value in read_history(run / "metrics.csv").itertuples(
            index=False
        )
    )


def test_a_tracker_receives_each_step_once_however_often_the_run_is_killed(
    store: Store,
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out, warned = make_config("scbd"), tmp_path / "run", []  # type: ignore[var-annotated]
    real, dies = Training._save_resume, {1, 3, 4, 6}
    calls = 0

    def dying(training: Training) -> None:
        nonlocal calls
        calls += 1
        if calls in dies and calls % 2:
            raise Killed
        real(training)
        if calls in dies:
            raise Killed

    monkeypatch.setattr(Training, "_save_resume", dying)
    for _ in range(9):
        try:
            with Tracker("wandb:mine", warned.append) as tracker:
                fit(config, screen.path, out, quiet=True, tracker=tracker)
            break
        except Killed:
            continue
    assert calls > max(dies)
    assert store.opened == [None, "abc", "abc", "abc", "abc"]
    assert sorted(store.points) == expected_points(out, {"encoders": 0, "decoder": 6})
    assert [step for step, _, _ in store.points] == sorted(step for step, _, _ in store.points)
    assert store.options["training.batch_size"] == 24
    assert store.options["data.fold"] == "plate=S1/P1"
    assert store.ended[-1] == "success"
    assert not any("tracker" in line for line in warned)
    without = finished_runs("scbd")
    for name in ("model.safetensors", "metrics.csv", "selection.json", "config.yaml"):
        assert (out / name).read_bytes() == (without / name).read_bytes()
    assert json.loads((out / FILE).read_text()) == {
        "tracker": "wandb:mine", "run": "abc", "step": 10,
    }  # fmt: skip


def test_a_tracker_that_fails_is_told_of_once_and_gets_all_at_the_end(
    store: Store,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, warned = tmp_path / "run", []  # type: ignore[var-annotated]
    follow, calls = Tracker.follow, 0

    def breaking(tracker: Tracker, *words: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        store.broken = calls == 2
        follow(tracker, *words, **named)

    monkeypatch.setattr(Tracker, "follow", breaking)
    with Tracker("wandb:mine", warned.append) as tracker:
        fit(make_config("erm"), screen.path, out, quiet=True, tracker=tracker)
    assert warned == [
        f"warning: {out}: --tracker wandb:mine failed (no route to host); training goes on without "
        "it, metrics.csv has everything"
    ]
    assert sorted(store.points) == expected_points(out, {"classifier": 0})


def test_a_tracker_that_stays_away_costs_no_run(
    store: Store, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    store.broken, warned = True, []  # type: ignore[var-annotated]
    with Tracker("wandb:mine", warned.append) as tracker:
        done = fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True, tracker=tracker)
    assert (done.path / "model.safetensors").is_file()
    assert len(warned) == 1
    assert json.loads((done.path / FILE).read_text())["step"] == 0


def test_a_run_that_was_begun_without_a_tracker_is_sent_whole(
    store: Store,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, validate = tmp_path / "run", Training._validate

    def stopped(training: Training) -> None:
        if training.position.done == 4:  # as a request to stop during validation
            training.position.validation_due = True
            training._save_resume()
            raise Killed
        validate(training)

    for begins in (None, "wandb:mine"):
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_validate", stopped)
            with pytest.raises(Killed):
                tracker = None if begins is None else Tracker(begins)
                fit(make_config("erm"), screen.path, out, quiet=True, tracker=tracker)
            if begins is None:
                (out / "resume.pt").unlink()
    with Tracker("wandb:mine") as tracker:
        fit(make_config("erm"), screen.path, out, quiet=True, tracker=tracker)
    assert sorted(store.points) == expected_points(out, {"classifier": 0})


def test_the_pictures_of_a_run_are_those_that_it_has(
    store: Store, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    for name, pictures in (("scbd", {"confusion", "swap"}), ("erm", {"confusion"})):
        store.pictures.clear()
        with Tracker("wandb:mine") as tracker:
            out = tmp_path / name / "run"
            done = fit(make_config(name), screen.path, out, quiet=True, tracker=tracker)
            show_pictures(done, screen.path, tracker)
        assert store.pictures.keys() == pictures
        for step, shape in store.pictures.values():
            assert step == (10 if name == "scbd" else 6)
            assert min(shape[:2]) > 100


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("wand", "--tracker wand: unknown tracker 'wand'; did you mean 'wandb'?"),
        ("mlflow:http://127.0.0.1:9", "nothing answers there; start it with `mlflow server`"),
        ("mlflow:{file}/x", "cannot be opened.*expected a place that can be written"),
        ("tensorboard:{file}/x", "cannot be opened|pip install 'deconfound"),
    ],
)
def test_a_tracker_that_cannot_be_opened_is_one_line_before_training(
    word: str,
    said: str,
    screen: Screen,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    few = "--steps 2 --batch-size 16 --device cpu --threads 1 --quiet --fold plate=S1/P1"
    words = ["fit", "erm", str(screen.path), "--out", str(tmp_path / "run"), *few.split()]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--tracker", word.format(file=tmp_path / "file")])
    assert stop.value.code == 2
    lines = [one for one in capsys.readouterr().err.splitlines() if "warning" not in one]
    assert len(lines) == 1
    assert re.search(said, lines[0])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_tracker_whose_package_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, package in (("wandb", "wandb"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"pip install 'deconfound\[{kind}\]'"):
            loggers.open_logger(kind, None, tmp_path, None, "run")


PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
PROGRAM = """
import os, signal, sys
from pathlib import Path
from deconfound.runs.config import read_config
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.training.tracking.tracker import Tracker
track, calls = Training._track, []
def dying(training, **named):
    track(training, **named)
    calls.append(0)
    if len(calls) == 2 and sys.argv[4] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
Training._track = dying
with Tracker(sys.argv[3], print) as tracker:
    fit(read_config(Path(sys.argv[1])), Path(sys.argv[2]), Path("run"), quiet=True, tracker=tracker)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_goes_on_in_the_same_run_of_a_real_tracker(
    kind: str, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    extra = f"{kind} is not installed: pip install 'deconfound[{kind}]'"
    pytest.importorskip(PACKAGES[kind], reason=extra)
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(make_config("erm")))
    known = []
    for how in ("kill", "end"):
        words = [sys.executable, "-c", PROGRAM, str(config), str(screen.path), kind, how]
        done = subprocess.run(
            words, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if how == "kill" else 0), done.stderr
        assert "failed" not in done.stdout
        known.append(json.loads((tmp_path / "run" / FILE).read_text()))
    assert known[0]["run"] == known[1]["run"]
    assert 0 < known[0]["step"] < known[1]["step"] == 6
    expected = expected_points(tmp_path / "run", {"classifier": 0})
    found = READ[kind](tmp_path / "run", known[1]["run"])
    assert [point[:2] for point in found] == [point[:2] for point in expected]
    np.testing.assert_allclose(
        [point[2] for point in found], [point[2] for point in expected], rtol=1e-6
    )


def _of_tensorboard(run: Path, _: str) -> list[tuple[int, str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened = EventAccumulator(str(run / "tensorboard"))
    opened.Reload()
    tags = [tag for tag in opened.Tags()["scalars"] if "/" in tag]
    return sorted((one.step, tag, one.value) for tag in tags for one in opened.Scalars(tag))


def _of_wandb(run: Path, name: str) -> list[tuple[int, str, float]]:
    return sorted(
        (step, key, value)
        for step, values in logged(run, name)
        for key, value in values.items()
        if key[0] != "_"
    )


def _of_mlflow(run: Path, name: str) -> list[tuple[int, str, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.resolve()}/mlflow/mlflow.db")
    keys = client.get_run(name).data.metrics
    return sorted(
        (one.step, key, one.value) for key in keys for one in client.get_metric_history(name, key)
    )


READ = {"tensorboard": _of_tensorboard, "wandb": _of_wandb, "mlflow": _of_mlflow}
