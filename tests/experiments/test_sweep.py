import contextlib
import errno
import importlib
import json
import os
import signal
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
from deconfound.experiments.overhead import Summary
from deconfound.experiments.plan import Job
from deconfound.experiments.running import executors, job, local
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.local import run_local
from deconfound.experiments.running.messages import Order, Outcome, run_directory
from deconfound.experiments.select import Result, read_result
from deconfound.reports.report import report
from deconfound.runtime.stop import Abandoned, Stopped
from deconfound.studies.compare import _kind, compare
from deconfound.studies.comparison import CompareOptions

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
EXECUTE = importlib.import_module("deconfound.experiments.execute")
SEARCH = importlib.import_module("deconfound.experiments.search_table")
CHEAP = {
    "steps": 2, "batch_size": 12, "validate_every": 2, "checkpoint_every": 2,
    "device": "cpu", "precision": "32",
}  # fmt: skip


def sweep(file: Path, out: Path, *, embeddings: bool = False, **more: Any) -> Summary:
    """What `compare` says it did of a plan file."""
    summary = compare(file, out, CompareOptions(embeddings=embeddings), **more).summary
    assert summary is not None
    return summary


def write(folder: Path, screen: Screen, **changed: Any) -> Path:
    """A sweep file of a second: two settings of ERM, two seeds, one fold."""
    values: dict[str, Any] = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "seeds": [0, 1],
        "data": {"val_fraction": 0.2},
        "training": CHEAP,
        "methods": {"erm": {"grid": {"learning_rate": [0.001, 0.1]}}},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changed), encoding="utf-8")
    return file


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are done in this process; the list names those that were."""
    names: list[str] = []

    def run_here(orders: Sequence[Order], workers: int) -> Generator[Outcome, None, None]:
        assert workers >= 1
        runner = Runner()
        for order in orders:
            names.append(order.name)
            yield runner.run(order)

    monkeypatch.setattr(executors, "run_local", run_here)
    return names


def test_a_sweep_ends_in_tables_and_is_not_done_twice(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    file, out = write(tmp_path, screen), tmp_path / "out"
    summary = sweep(file, out, quiet=True)
    assert (summary.runs, summary.before, summary.failed, len(done)) == (4, 0, 0, 4)
    scores = pd.read_parquet(out / "scores.parquet")
    assert set(scores["seed"]) == {0, 1}
    assert len(scores.drop_duplicates(["config", "seed", "metric", "part"])) == len(scores)
    table = pd.read_csv(out / "table.csv")
    assert table["compared"].tolist() == ["2 of 2"]
    chosen = table["runs"].item().split()
    mean = scores.query("metric == 'accuracy' and part == 'test'")
    rates = [json.loads(text)["options"]["learning_rate"] for text in mean["config"]]
    taken = float(table["setting"].item().split()[1])
    assert mean["value"][[rate == taken for rate in rates]].mean() == pytest.approx(
        table["test_accuracy_mean"].item()
    )
    assert all(run_directory(out, name).is_dir() for name in chosen)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".md", ".npz")}
    assert sweep(file, out, quiet=True).before == 4
    assert len(done) == 4
    assert before == {path: path.read_bytes() for path in before}
    report([out], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(run_directory(out, name).name in page for name in chosen)
    others = {path.name for path in (out / "runs").iterdir()} - set(chosen)
    assert others
    assert not any(name in page for name in others)
    assert 'id="sweeps"' in page
    assert pd.read_csv(out / "table.csv")["setting"].item() in page
    grown = sweep(write(tmp_path, screen, seeds=[0, 1, 2]), out, embeddings=True, quiet=True)
    assert (grown.runs, grown.before, len(done)) == (6, 4, 6)
    chosen = pd.read_csv(out / "table.csv")["runs"].item().split()
    assert {file.stem for file in (out / "embeddings").iterdir()} == set(chosen)


def test_a_failure_is_listed_and_tried_again(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    entries = {"erm": None, "scbd": {"options": {"decoder": "none", "block_size": 8}}}
    data = {"environment": ["series"], "val_fraction": 0.2}
    file = write(tmp_path, screen, methods=entries, data=data, folds=["series=S1"], seeds=[0])
    summary = sweep(file, tmp_path / "out", quiet=True)
    assert (summary.runs, summary.failed) == (2, 1)
    failure = pd.read_csv(tmp_path / "out" / "failures.csv").iloc[0]
    assert failure["run"].startswith("scbd-")
    assert "expected 2 or more" in failure["reason"]
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert table.loc["erm", "setting"] == "as given"
    assert table.loc["scbd", "setting"] == "none has finished"
    again = sweep(file, tmp_path / "out", quiet=True)
    assert (again.before, again.failed, len(done)) == (1, 1, 3)


def test_loto_selects_by_environments_left_out(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    data = {"environment": ["plate", "section"], "val_fraction": 0.2}
    file = write(tmp_path, screen, select=["loto", "accuracy"], seeds=[0], data=data)
    sweep(file, tmp_path / "out", quiet=True)
    assert len(done) == 2 + 2 * 4
    left_out = pd.read_parquet(tmp_path / "out" / "loto.parquet")
    accuracy = left_out.query("part == 'ood_val' and metric == 'accuracy'")
    rate = accuracy["config"].map(lambda text: json.loads(text)["options"]["learning_rate"])
    means = accuracy["value"].groupby(rate).mean()
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("selected_by")
    assert table.loc["loto", "criterion"] == pytest.approx(means.max())
    assert "ood_val" not in set(pd.read_parquet(tmp_path / "out" / "scores.parquet")["part"])


def test_chains_are_done_once_for_the_setting_that_two_rules_take(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    entries = {"erm": {"grid": {"learning_rate": [0.001, 0.1]}}, "same": {"method": "erm"}}
    given: dict[str, Any] = {"select": ["accuracy", "loss"], "seeds": [0], "folds": ["iid"]}
    chains = ["erm", "erm+pca+knn", "same+pca+knn"]
    file = write(tmp_path, screen, methods=entries, chains=chains, knn=3, **given)
    summary = sweep(file, tmp_path / "out", quiet=True)
    assert (summary.runs, summary.failed) == (2, 0)  # the grid's first point is `same`
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    taken = set(table.loc[["erm"], "runs"]) | {table.loc["same", "runs"]}
    embedded = {file.stem for file in (tmp_path / "out" / "embeddings").iterdir()}
    assert embedded == taken | {f"{name}+pca+knn3" for name in taken}
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(scores["method"]) == {"erm", "erm+pca+knn", "same+pca+knn"}
    assert set(scores.loc[scores["method"] == "erm+pca+knn", "run"]) == set(
        table.loc[["erm"], "runs"]
    )
    before = len(done)
    assert sweep(file, tmp_path / "out", quiet=True).before == 2
    assert len(done) == before


def test_a_view_by_levels_shows_the_settings_taken_whatever_the_directory_held(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    """Chains of a setting that was taken once and is not now are on disk, and count no more."""
    entries = {"low": {"method": "erm", "grid": {"learning_rate": [0.1, 1e-9]}},
               "high": {"method": "erm", "options": {"learning_rate": 0.03}}}  # fmt: skip
    given: dict[str, Any] = {"seeds": [0], "folds": ["iid", "plate=S1/P1"], "knn": 3}
    chains = ["low", "low+pca+knn", "high"]
    only = {"low": {"method": "erm", "options": {"learning_rate": 1e-9}}, "high": entries["high"]}
    shown = CompareOptions(view="levels")
    first = write(tmp_path, screen, methods=only, chains=chains, **given)
    compare(first, tmp_path / "held", shown, quiet=True)
    file = write(tmp_path, screen, methods=entries, chains=chains, **given)
    held = compare(file, tmp_path / "held", shown, quiet=True)
    fresh = compare(file, tmp_path / "fresh", shown, quiet=True)
    pd.testing.assert_frame_equal(held.shown, fresh.shown)
    table = pd.read_csv(tmp_path / "fresh" / "table.csv").set_index("method")
    assert table["IID_runs"].tolist() == [1, 1, 1]
    plain = write(tmp_path, screen, methods=entries, **given)
    found = compare(plain, tmp_path / "held", shown, quiet=True).shown
    assert sorted(found["method"]) == ["high", "low"]
    assert done


def test_a_trade_off_of_a_plan_with_chains_reads_the_runs_own_predictions(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    grid = {"erm": {"grid": {"learning_rate": [0.001, 0.1]}}}
    shown = CompareOptions(view="trade-off")
    tables = []
    for name, chains in (("with", ["erm", "erm+knn"]), ("without", [])):
        file = write(tmp_path, screen, methods=grid, chains=chains, seeds=[0])
        compare(file, tmp_path / name, shown, quiet=True)
        tables.append((tmp_path / name / "points.csv").read_text())
    assert tables[0] == tables[1]
    assert done


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"corrections": {"pac": {"components": 4}}},
            "unknown correction 'pac'; did you",
        ),
        ({"measure": ["idd"]}, "measure names 'idd', which is no fold of the plan"),
    ],
)
def test_a_misspelt_correction_or_fold_to_measure_is_refused(
    changed: dict[str, Any], said: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        compare(write(tmp_path, screen, **changed), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_other_seeds_are_for_the_settings_chosen(
    screen: Screen, tmp_path: Path, done: list[str]
) -> None:
    out = tmp_path / "out"
    one = {"method": "erm", "options": {"learning_rate": 0.01}}
    entries = {"erm": {"grid": {"learning_rate": [0.001, 0.1]}}, "one": one}
    given: dict[str, Any] = {"methods": entries, "select": ["accuracy", "loss"]}
    file = write(tmp_path, screen, seeds=[0, 1], search_seeds=[1], **given)
    summary = sweep(file, out, quiet=True, embeddings=True)
    plan = make_plan(file)
    first, second, alone = plan.settings
    assert set(done[:4]) == {first.runs[1], second.runs[1], *alone.runs.values()}
    table = pd.read_csv(out / "table.csv").set_index(["method", "selected_by"])
    rows = [table.loc["erm", rule] for rule in ("accuracy", "loss")]
    chosen = {name for row in rows for name in row["runs"].split()}
    assert set(done) == {first.runs[1], second.runs[1], *alone.runs.values()} | chosen
    assert len(done) == len(set(done)) == summary.runs
    assert {file.stem for file in (out / "embeddings").iterdir()} == chosen | set(
        alone.runs.values()
    )
    for row in rows:
        (taken,) = [s for s in (first, second) if " ".join(s.runs.values()) == row["runs"]]
        results = [read_result(out, plan.jobs[name]) for name in taken.runs.values()]
        assert None not in results
        searched = [one for one in results if one and one.job.config.seed == 1]
        criterion = {
            "accuracy": searched[0].value("val", "accuracy"),
            "loss": searched[0].validation_loss,
        }
        assert row["criterion"] == criterion[str(row.name[1])]
        accuracies = [one.value("test", "accuracy") for one in results if one]
        assert row["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
        assert row["seeds"] == 2
    again = sweep(file, out, quiet=True)
    assert (again.runs, again.before, len(done)) == (summary.runs, summary.runs, summary.runs)
    whole = sweep(write(tmp_path, screen, **given), out, quiet=True)
    assert (whole.runs, whole.before) == (6, summary.runs)
    assert len(done) == len(set(done)) == 6
    sweep(write(tmp_path, screen, search_seeds=[1], **given), out, quiet=True)
    found = set(pd.read_parquet(out / "scores.parquet")["config"])
    assert found == {json.dumps(plan.jobs[name].config.model_dump(mode="json"))
                     for name in done[: summary.runs]}  # fmt: skip


def test_a_chosen_setting_that_fails_later_shows_its_other_seeds(
    screen: Screen, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = Runner.run, tmp_path / "out"

    def fail_on_seed_2(self: Runner, order: Order) -> Outcome:
        if json.loads(order.config)["seed"] == 2:
            return Outcome(order.name, 0, time.time(), time.time(), reason="loss became nan")
        return real(self, order)

    file = write(tmp_path, screen, seeds=[0, 1, 2], search_seeds=[0], folds=["iid", "plate=S1/P1"])
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail_on_seed_2)
        summary = sweep(file, out, quiet=True)
    assert (summary.runs, summary.failed, len(done)) == (8, 2, 8)
    failures = pd.read_csv(out / "failures.csv")
    assert (set(failures["seed"]), set(failures["reason"])) == ({2}, {"loss became nan"})
    table = pd.read_csv(out / "table.csv")
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table["setting"][:2].str.endswith(" (failed on seed 2)").all()
    assert not table["test_accuracy_mean"].isna().any()
    again = sweep(file, out, quiet=True)
    assert (again.before, again.failed, len(done)) == (6, 0, 10)
    table = pd.read_csv(out / "table.csv")
    assert table["seeds"].tolist() == [3, 3, 3]
    assert not table["setting"].str.contains("failed").any()


def test_a_search_that_fails_chooses_nothing_and_ends(
    screen: Screen, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Runner, order: Order) -> Outcome:
        return Outcome(order.name, 0, time.time(), time.time(), reason="no")

    monkeypatch.setattr(Runner, "run", fail)
    summary = sweep(write(tmp_path, screen, search_seeds=[0]), tmp_path / "out", quiet=True)
    assert (summary.runs, summary.failed, len(done)) == (2, 2, 2)
    assert pd.read_csv(tmp_path / "out" / "table.csv")["setting"].item() == "none has finished"


def test_the_seconds_of_two_rounds_add_up(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes search for 4 s and 6 s, then one trains for 5 s and the other waits."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def pretend(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        if len(orders) == 2:
            yield Outcome(orders[0].name, 0, 1002.0, 1006.0, 3.0, 0.5)
            yield Outcome(orders[1].name, 1, 1002.0, 1008.0, 5.0, 0.5)
            now[0] = 1008.0
        else:
            yield Outcome(orders[0].name, 0, 1009.0, 1014.0, 4.0, 0.5)
            now[0] = 1014.0

    results: dict[str, Result] = {}

    def pretend_result(_: Path, job: Job) -> Result | None:
        if now[0] < 1008:
            return None
        if now[0] < 1014 and job.config.seed == 1:
            return None
        return results.setdefault(job.name, Result(job, [], 0.5))

    monkeypatch.setattr(executors, "run_local", pretend)
    monkeypatch.setattr(EXECUTE, "read_result", pretend_result)
    monkeypatch.setattr(SEARCH, "make_table", lambda *_: None)
    monkeypatch.setattr(SEARCH, "write_table", lambda *_: None)
    monkeypatch.setattr(SEARCH, "shown_table", lambda *_: None)
    file = write(tmp_path, screen, search_seeds=[0], select=["loss"])
    found = sweep(file, tmp_path / "out", quiet=True, started=1000.0)
    assert (found.runs, found.before, found.workers, found.wall_seconds) == (3, 0, 2, 14.0)
    assert found.training_seconds == 12.0
    assert found.waiting_seconds == pytest.approx(2 + 5)  # then the start of the second round:
    assert found.start_up_seconds == pytest.approx(2 * 2 + 2 * 1)


def test_a_search_that_is_stopped_says_so(
    screen: Screen, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write(tmp_path, screen, search_seeds=[0]), tmp_path / "out"
    real = Runner.run

    for stop_at, said in ((2, "1 of 2 runs of the search"), (4, "0 of 1 runs of the chosen set")):

        def stop(self: Runner, order: Order, at: int = stop_at) -> Outcome:
            if len(done) == at:
                raise KeyboardInterrupt
            return real(self, order)

        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", stop)
            with pytest.raises(Stopped, match=said):
                sweep(file, out, quiet=True)
    assert sweep(file, out, quiet=True).before == 2
    assert pd.read_csv(out / "table.csv")["seeds"].item() == 2


def test_the_seconds_add_up(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with made-up times: 10 s and 6 s of runs, of which 12 s train."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def pretend(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        yield Outcome(orders[0].name, 0, 1001.0, 1005.0, 3.0, 0.5)
        yield Outcome(orders[1].name, 1, 1002.0, 1008.0, 5.0, 0.5)
        now[0] = 1012.0
        yield Outcome(orders[2].name, 0, 1006.0, 1012.0, 4.0, 1.0)

    monkeypatch.setattr(executors, "run_local", pretend)
    file = write(tmp_path, screen, seeds=[0], methods={"erm": {"grid": {"steps": [1, 2, 3]}}})
    found = sweep(file, tmp_path / "out", quiet=True, started=999.0)
    assert (found.workers, found.wall_seconds) == (2, 13.0)
    assert (found.training_seconds, found.evaluation_seconds) == (12.0, 2.0)
    assert found.preparation_seconds == pytest.approx(2.0)
    assert found.waiting_seconds == pytest.approx(4.0)
    assert found.start_up_seconds == pytest.approx(26 - 16 - 4)
    parts = (found.training_seconds, found.evaluation_seconds, found.preparation_seconds,
             found.start_up_seconds, found.waiting_seconds, found.table_seconds)  # fmt: skip
    assert sum(parts) == pytest.approx(found.workers * found.wall_seconds)
    assert found.overhead == pytest.approx(10 / 22)
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert saved["overhead"] == pytest.approx(10 / 22)


def test_a_directory_of_something_else_is_refused(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a comparison"):
        sweep(write(tmp_path, screen), tmp_path / "out", quiet=True)


def test_a_stopped_sweep_goes_on(
    screen: Screen, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write(tmp_path, screen), tmp_path / "out"
    real = Runner.run

    def stop_at_the_second(self: Runner, order: Order) -> Outcome:
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(self, order)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", stop_at_the_second)
        with pytest.raises(Stopped, match="1 of 4 runs done, those under way"):
            sweep(file, out, quiet=True)
    assert not (out / "table.csv").exists()
    assert sweep(file, out, quiet=True).before == 1
    assert (out / "table.csv").exists()


def test_processes_are_stopped_resumed_and_replaced(
    screen: Screen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    """SIGTERM to the command while it trains; then a process that ends without an answer."""
    training = CHEAP | {"steps": 60, "checkpoint_every": 60, "validate_every": 60}
    file = write(tmp_path, screen, training=training, methods={"erm": None}, seeds=[0, 1, 2])
    words = ["compare", str(file), "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    command = [sys.executable, "-m", "deconfound", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as running:
        runs = tmp_path / "out" / "runs"
        while not list(runs.glob("*/config.yaml")):
            assert running.poll() is None
            time.sleep(0.005)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert "of 3 runs done, those under way are saved; the same command resumes" in said
    assert not list(tmp_path.rglob("*.lock"))
    order = _order(tmp_path / "out", file)
    starts = []

    def broken_at_first(number: int) -> dict[str, str]:
        starts.append(number)
        return ENVIRONMENT | ({"PYTHONHOME": "/nowhere"} if len(starts) == 1 else {})

    monkeypatch.setattr(local, "_environment", broken_at_first)
    lost, resumed = run_local([order._replace(name="lost"), order], 1)
    assert lost.reason == "its process ended with code 1; if memory ran out, lower --workers"
    assert (resumed.reason, resumed.worker, starts) == ("", 0, [0, 0])
    whole = tmp_path / "whole"
    assert Runner().run(order._replace(out=str(whole))).reason == ""
    assert_same_run(run_directory(tmp_path / "out", order.name), run_directory(whole, order.name))


def test_a_process_that_is_killed_fails_its_run(screen: Screen, tmp_path: Path) -> None:
    process = local._Process(0)
    process.take(_order(tmp_path, write(tmp_path, screen)))
    process._process.kill()
    assert process.outcome().reason == (
        "its process was killed by signal 9 (SIGKILL): the system does so when memory runs out, or "
        "somebody did; lower --workers or the batch size"
    )
    process.wait(1)


def test_a_run_that_meets_no_memory_and_no_disk_says_so(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _order(tmp_path, write(tmp_path, screen))
    (tmp_path / "failures").write_text("a file in the way of the folder")
    for error, said in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out (Default"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device; make room"),
        (ZeroDivisionError("a fault"), "ZeroDivisionError: a fault"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(job, "train", fail)
        assert Runner().run(order).reason.startswith(said)


class Slow:
    """A process that saves its run until it is killed."""

    def __init__(self, log: list[str], patient: bool) -> None:
        self._log, self._patient = log, patient

    def ask_to_end(self) -> None:
        self._log.append("asked")

    def wait(self, seconds: float) -> None:
        if seconds and not self._patient:
            raise KeyboardInterrupt
        self._log.append("waited" if seconds else "killed")


@pytest.mark.parametrize("patient", [True, False])
def test_a_second_interrupt_kills_the_processes(patient: bool) -> None:
    log: list[str] = []
    processes: Any = [Slow(log, patient), Slow(log, patient)]
    if patient:
        local._end(processes)
        assert log == ["asked", "asked", "waited", "waited"]
        return
    with pytest.raises(Abandoned):
        local._end(processes)
    assert log == ["asked", "asked", "killed", "killed"]


@pytest.mark.parametrize(
    ("raised", "ends", "kept"),
    [
        (KeyboardInterrupt, Stopped, "are saved"),
        (Stopped, Stopped, "are saved"),
        (Abandoned, Abandoned, "go on from their last checkpoint"),
    ],
)
def test_what_a_stopped_sweep_says(
    raised: type[KeyboardInterrupt],
    ends: type[KeyboardInterrupt],
    kept: str,
    screen: Screen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        yield Outcome(orders[0].name, 0, 0.0, 1.0)
        raise raised

    monkeypatch.setattr(executors, "run_local", stopped)
    with pytest.raises(KeyboardInterrupt) as request:
        sweep(write(tmp_path, screen), tmp_path / "out", quiet=True)
    assert request.type is ends
    assert str(request.value) == (
        f"{tmp_path / 'out'}: 1 of 4 runs done, those under way {kept}; the same command resumes"
    )


def test_ctrl_c_in_the_demonstration_ends_as_in_fit(tmp_path: Path) -> None:
    """SIGINT to the whole group; no process stays, and the same command goes on."""
    words = ["compare", "demo", "--out", "demo", "--cells", "500", "--steps", "5000"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from deconfound.cli import main; main()"
    command = [sys.executable, "-c", code, *words, "--workers", "2", "--quiet"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **pipes
    ) as running:
        while len({file.parent for file in tmp_path.glob("demo/runs/*/*.safetensors")}) < 2:
            assert running.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        started = children.read_text().split() if children.exists() else []
        os.killpg(running.pid, signal.SIGINT)
        out, said = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, "")
    assert said == (
        "deconfound: demo: 0 of 28 runs done, those under way are saved; the same command resumes\n"
    )
    assert not [one for one in started if Path(f"/proc/{one}").exists()]
    assert len(list(tmp_path.glob("demo/runs/*/resume.pt"))) == 2
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".partial", ".lock")]
    with contextlib.chdir(tmp_path):
        assert _kind(Path("demo"), CompareOptions()) == "demo"


def _order(out: Path, file: Path) -> Order:
    """The first run of a sweep, as a process is told it."""
    job = next(iter(make_plan(file).jobs.values()))
    text = job.config.model_dump_json()
    return Order(job.name, str(job.screen), job.identity, job.config.method, text, str(out))
