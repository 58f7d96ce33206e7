"""Trials of Optuna: what is proposed, that a killed search goes on, and what it takes."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Setting
from deconfound.experiments.running import executors
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, Outcome, run_directory
from deconfound.experiments.search import search
from deconfound.experiments.select import Result
from deconfound.experiments.trials import Trials
from deconfound.reports.report import report
from deconfound.runtime.seeds import derived_seed
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

optuna = pytest.importorskip(
    "optuna", reason="Optuna is not installed: pip install 'deconfound[optuna]'"
)
CHEAP = {
    "steps": 2, "batch_size": 12, "validate_every": 2, "checkpoint_every": 2,
    "device": "cpu", "precision": "32",
}  # fmt: skip
RATE = {"low": 1e-4, "high": 0.1, "log": True}
SEARCH = {"trials": 4, "startup": 2, "batch": 2}
Do = Callable[[Sequence[Setting], str], dict[str, Result]]


def write(folder: Path, screen: Screen, **changed: Any) -> Path:
    """A plan of four trials of ERM, in batches of two, on one fold and seed."""
    entry = {
        "search": SEARCH,
        "ranges": {"learning_rate": RATE, "batch_size": {"low": 8, "high": 16}},
        "grid": {"schedule": ["constant", "cosine"]},
    }
    values: dict[str, Any] = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "data": {"val_fraction": 0.2},
        "training": CHEAP,
        "methods": {"erm": entry},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changed, sort_keys=False), encoding="utf-8")
    return file


def trials_of(out: Path, number: int = 0) -> list[Any]:
    """The trials of a study that Optuna itself reads of a search's directory."""
    storage = f"sqlite:///{out / 'optuna.db'}"
    names = optuna.study.get_all_study_names(storage)
    study = optuna.load_study(study_name=names[number], storage=storage)
    trials: list[Any] = study.trials
    return trials


def told(out: Path) -> list[tuple[dict[str, Any], float | None, list[str]]]:
    return [(one.params, one.value, one.user_attrs["runs"]) for one in trials_of(out)]


def done_here(patch: pytest.MonkeyPatch) -> list[str]:
    """Have runs done in this process, the last first; the list names those that were."""
    names: list[str] = []

    def run_here(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        runner = Runner()
        for order in reversed(orders):
            names.append(order.name)
            yield runner.run(order)

    patch.setattr(executors, "run_local", run_here)
    return names


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return done_here(monkeypatch)


@pytest.fixture(scope="module")
def whole(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        done_here(patch)
        compare(write(folder, screen), folder / "out", quiet=True)
    return folder / "out"


def pretended(file: Path, accuracy: Callable[[Setting], float], noise: float = 0.0) -> Do:
    """Runs that reach `accuracy` on validation rows, and `noise` on held-out ones."""
    seen: list[Setting] = []

    def do(settings: Sequence[Setting], _: str) -> dict[str, Result]:
        seen.extend(settings)
        results = {}
        for setting in settings:
            for name in setting.runs.values():
                value = accuracy(setting)
                scores = [
                    {"metric": "accuracy", "part": "val", "value": value},
                    {"metric": "accuracy", "part": "test", "value": noise * len(results)},
                ]
                if not math.isnan(value):
                    results[name] = Result(plan.jobs[name], scores, 1 - value)
        return results

    plan = make_plan(file)
    vars(do).update(plan=plan, seen=seen)
    return do


def searched(file: Path, out: Path, accuracy: Callable[[Setting], float], **more: Any) -> Any:
    do: Any = pretended(file, accuracy, **more)
    search(do.plan, out, do)
    return do


def near(setting: Setting) -> float:
    """Best at a learning rate of 0.001."""
    return 1 - (math.log10(setting.values["learning_rate"]) + 3) ** 2 / 4


def test_a_search_ends_in_the_tables_of_any_search(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    file = write(tmp_path, screen, seeds=[0, 1], search_seeds=[0])
    out = tmp_path / "out"
    found = compare(file, out, CompareOptions(embeddings=True), quiet=True).summary
    assert found is not None
    assert (found.runs, found.before, found.failed) == (5, 0, 0)
    assert json.loads((out / "summary.json").read_text())["runs"] == 5
    trials = told(out)
    assert len(trials) == 4
    rates = [params["learning_rate"] for params, _, _ in trials]
    assert len(set(rates)) == 4
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert {type(params["batch_size"]) for params, _, _ in trials} == {int}
    assert {params["schedule"] for params, _, _ in trials} <= {"constant", "cosine"}
    (row,) = pd.read_csv(out / "table.csv").to_dict("records")
    best = max(range(4), key=lambda number: trials[number][1] or 0.0)
    params, value, runs = trials[best]
    assert row["setting"] == (
        f"trial {best}: learning_rate {params['learning_rate']:.4g}, "
        f"batch_size {params['batch_size']}, schedule {params['schedule']}"
    )
    assert (row["criterion"], row["compared"], row["seeds"]) == (value, "4 of 4", 2)
    assert row["runs"].split() == runs
    assert {one.stem for one in (out / "embeddings").iterdir()} == set(runs)
    stored = pd.read_parquet(out / "scores.parquet").query("part == 'val' and metric == 'accuracy'")
    own = stored[stored["run"] == runs[0]]
    assert own["value"].item() == value
    assert json.loads(own["setting"].item()) == params
    again = compare(file, out, quiet=True).summary
    assert again is not None
    assert (again.runs, again.before, len(done)) == (5, 5, 5)
    assert told(out) == trials
    report([out], tmp_path / "report.html")
    assert row["setting"] in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["run", "_setting", "tell"])
def test_a_search_that_ends_anywhere_goes_on_as_if_it_had_not(
    place: str,
    screen: Screen,
    tmp_path: Path,
    whole: Path,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a run, between two proposals of a batch, and between two trials that are told."""
    owner: Any = Runner if place == "run" else Trials
    file, real = write(tmp_path, screen), getattr(owner, place)
    for at in (1, 2):
        calls: list[int] = []

        def die(*arguments: Any, at: int = at, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == at + 1:
                raise SystemExit("killed")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, place, die)
            with pytest.raises(SystemExit):
                compare(file, tmp_path / "out", quiet=True)
    compare(file, tmp_path / "out", quiet=True)
    assert told(tmp_path / "out") == told(whole)
    assert (tmp_path / "out" / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    assert len(done) <= 4 + 2


def test_a_killed_command_goes_on(screen: Screen, tmp_path: Path, done: list[str]) -> None:
    """SIGKILL while a trial trains; then the same command in this process."""
    training = CHEAP | {"steps": 40, "checkpoint_every": 20, "validate_every": 20}
    few = {"search": {"trials": 3, "startup": 1, "batch": 1}, "ranges": {"learning_rate": RATE}}
    file, out = write(tmp_path, screen, training=training, methods={"erm": few}), tmp_path / "out"
    words = ["compare", str(file), "--out", str(out), "--workers", "1", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "deconfound", *words], env=environment, stderr=subprocess.PIPE
    ) as running:
        while not (list(out.glob("results/*.json")) and len(list(out.glob("runs/*"))) > 1):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    states = [one.state.name for one in trials_of(out)]
    assert "RUNNING" in states
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            compare(file, out, quiet=True)
        except UserError:  # the killed command's process still holds a run for a moment
            time.sleep(0.2)
            continue
        break
    compare(file, tmp_path / "whole", quiet=True)
    assert told(out) == told(tmp_path / "whole")
    assert {one.name for one in (out / "runs").iterdir()} == {
        one.name for one in (tmp_path / "whole" / "runs").iterdir()
    }
    assert (out / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    assert done


def test_trials_draw_near_what_did_well(screen: Screen, tmp_path: Path) -> None:
    many: dict[str, Any] = {
        "search": {"trials": 32, "startup": 8},
        "ranges": {"learning_rate": RATE},
    }
    file = write(tmp_path, screen, methods={"erm": many})
    found = searched(file, tmp_path / "tpe", near)
    away = [abs(math.log10(one.values["learning_rate"]) + 3) for one in found.seen]
    assert statistics.median(away[-16:]) < 0.6 * statistics.median(away[:8])
    assert min(away) < 0.05
    assert [one.trial for one in found.seen] == list(range(32))
    many["search"] = {"trials": 12, "sampler": "random"}
    file = write(tmp_path, screen, methods={"erm": many})
    drawn = searched(file, tmp_path / "random", near)
    rates = [math.log10(one.values["learning_rate"]) for one in drawn.seen]
    assert max(rates) - min(rates) > 1.5
    again = searched(file, tmp_path / "else", lambda one: -near(one))
    assert [one.values for one in again.seen] == [one.values for one in drawn.seen]


def test_what_is_proposed_is_what_optuna_proposes(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "out"
    searched(write(tmp_path, screen), out, near)
    trials = trials_of(out)
    seed = derived_seed(0, "optuna", "erm", screen.identity, "plate=S1/P1", 3) % 2**32
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=2, multivariate=True, constant_liar=True
        ),
    )
    study.add_trials(trials[:2])
    beside = {"params": trials[2].params, "distributions": trials[2].distributions}
    running = optuna.trial.TrialState.RUNNING  # as it is of the same batch
    study.add_trial(optuna.trial.create_trial(state=running, **beside))
    assert study.ask(trials[3].distributions).params == trials[3].params
    assert trials[3].distributions == {
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 0.1, log=True),
        "batch_size": optuna.distributions.IntDistribution(8, 16),
        "schedule": optuna.distributions.CategoricalDistribution(["constant", "cosine"]),
    }


def test_neither_held_out_rows_nor_other_folds_decide(screen: Screen, tmp_path: Path) -> None:
    folds = ["plate=S1/P1", "iid"]
    both = searched(write(tmp_path, screen, folds=folds), tmp_path / "both", near)
    noisy = searched(write(tmp_path, screen, folds=folds), tmp_path / "noisy", near, noise=9)
    alone = searched(write(tmp_path, screen), tmp_path / "alone", near)
    assert [one.values for one in noisy.seen] == [one.values for one in both.seen]
    of_fold = [one.values for one in both.seen if one.fold == "plate=S1/P1"]
    assert of_fold == [one.values for one in alone.seen]
    others = [one.values for one in both.seen if one.fold == "iid"]
    assert not any(values in of_fold for values in others)


def test_the_first_rule_judges_trials(screen: Screen, tmp_path: Path) -> None:
    values = {}
    for rule in ("accuracy", "loss"):
        file = write(tmp_path, screen, select=[rule])
        searched(file, tmp_path / rule, near)
        values[rule] = [one.value for one in trials_of(tmp_path / rule)]
    expected = [near(one) for one in searched(file, tmp_path / "again", near).seen]
    assert values["loss"] == [1 - value for value in expected]
    assert values["accuracy"][:2] == expected[:2]


def test_a_trial_whose_run_failed_stays_open_and_is_tried_again(
    screen: Screen, tmp_path: Path
) -> None:
    file, out = write(tmp_path, screen), tmp_path / "out"
    first = searched(file, out, lambda one: math.nan if one.trial == 1 else near(one))
    assert [one.state.name for one in trials_of(out)] == [
        "COMPLETE", "RUNNING", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    second = searched(file, out, near)
    assert [one.values for one in second.seen] == [one.values for one in first.seen]
    assert [one.value for one in trials_of(out)] == [near(one) for one in second.seen]


def test_more_trials_go_on_from_those_there_are(screen: Screen, tmp_path: Path) -> None:
    file, out = write(tmp_path, screen), tmp_path / "out"
    searched(file, out, near)
    entry = yaml.safe_load(file.read_text())["methods"]["erm"]
    entry["search"] = SEARCH | {"trials": 7}
    more = searched(write(tmp_path, screen, methods={"erm": entry}), out, near)
    whole = searched(file, tmp_path / "whole", near)
    assert [one.values for one in more.seen] == [one.values for one in whole.seen]
    assert [one.trial for one in more.seen] == list(range(7))
    entry["search"] = SEARCH | {"trials": 3}
    fewer = searched(write(tmp_path, screen, methods={"erm": entry}), out, near)
    assert [one.values for one in fewer.seen] == [one.values for one in more.seen[:3]]


def test_a_storage_that_was_removed_loses_nothing(
    screen: Screen, tmp_path: Path, whole: Path, done: list[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "optuna.db").unlink()
    compare(write(tmp_path, screen), out, quiet=True)
    assert told(out) == told(whole)
    assert done == []


def test_loto_judges_trials_by_environments_left_out(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    data = {"environment": ["series"], "val_fraction": 0.2}
    file = write(tmp_path, screen, select=["loto", "accuracy"], data=data, folds=["iid"])
    out = tmp_path / "out"
    compare(file, out, quiet=True)
    left_out = pd.read_parquet(out / "loto.parquet")
    accuracy = left_out.query("part == 'ood_val' and metric == 'accuracy'")
    rate = accuracy["config"].map(lambda text: json.loads(text)["options"]["learning_rate"])
    means = accuracy["value"].groupby(rate).mean()
    for params, value, _ in told(out):
        assert value == pytest.approx(means[params["learning_rate"]])
    assert set(pd.read_csv(out / "table.csv")["selected_by"]) == {"loto", "accuracy"}
    assert len(done) == 4 * 3


def test_settings_stand_in_the_order_of_the_plan(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    """An entry of trials stands before one of a grid; chains are done for the trial taken."""
    tuned = {"method": "erm", "search": SEARCH, "ranges": {"learning_rate": RATE}}
    entries = {"tuned": tuned, "erm": {"grid": {"learning_rate": [0.001, 0.1]}}}
    chains = ["tuned+pca+knn", "erm"]
    file, out = write(tmp_path, screen, methods=entries, chains=chains, knn=3), tmp_path / "out"
    compare(file, out, quiet=True)
    table = pd.read_csv(out / "table.csv")
    assert table["method"].tolist() == ["tuned", "erm"]
    assert table["compared"].tolist() == ["4 of 4", "2 of 2"]
    (run,) = table["runs"][0].split()
    assert (out / "embeddings" / f"{run}+pca+knn3.h5ad").is_file()
    assert run_directory(out, run).is_dir()
    assert len(set(done)) == 6
    levels = compare(file, out, CompareOptions(view="levels"), quiet=True).shown
    assert levels.iloc[:, 0].tolist() == ["tuned+pca+knn", "erm"]


def test_a_plan_without_a_search_needs_no_optuna(
    screen: Screen, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    compare(write(tmp_path, screen, methods={"erm": None}), tmp_path / "out", quiet=True)
    assert len(done) == 1
    assert not (tmp_path / "out" / "optuna.db").exists()
