import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.data.folds.groups import physical_well
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.plan import Job, Plan, Setting
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.messages import predictions_file
from deconfound.experiments.search_table import (
    make_table,
    read_shown_table,
    shown_table,
    write_table,
)
from deconfound.experiments.select import Choice, Result
from deconfound.experiments.verdict import bootstrap
from deconfound.runs.config import RunConfig


def slow_bootstrap(correct: np.ndarray, unit: np.ndarray, replicates: int) -> np.ndarray:
    """Draw seeds, then units, one by one."""
    stream = np.random.default_rng(0)
    rows_of = [np.flatnonzero(unit == one) for one in np.unique(unit)]
    found = []
    for _ in range(replicates):
        units = stream.integers(0, len(rows_of), len(rows_of))
        rows = np.concatenate([rows_of[one] for one in units])
        seeds = stream.integers(0, len(correct), len(correct))
        found.append(correct[seeds][:, rows].mean())
    return np.array(found)


@pytest.mark.parametrize("rows_of_unit", [1, 4])
def test_the_interval_is_that_of_drawing_one_by_one(rows_of_unit: int) -> None:
    stream = np.random.default_rng(1)
    unit = np.repeat(np.arange(80 // rows_of_unit), rows_of_unit)
    hard = stream.random(unit.max() + 1)[unit]
    correct = stream.random((3, 80)) < hard * np.array([[1.0], [0.8], [0.6]])
    expected = np.percentile(slow_bootstrap(correct, unit, 1000), [2.5, 97.5])
    np.testing.assert_allclose(bootstrap(correct, unit), expected, atol=0.02)


def test_rows_that_belong_together_widen_the_interval() -> None:
    stream = np.random.default_rng(1)
    right = np.repeat(stream.random(20) < 0.5, 30)[None]
    low, high = bootstrap(right, np.repeat(np.arange(20), 30))
    narrow = bootstrap(right, np.arange(600))
    assert high - low > 3 * (narrow[1] - narrow[0])
    assert bootstrap(right, np.arange(600)) == narrow  # the same every time
    assert all(map(math.isnan, bootstrap(right[:, :0], np.arange(0))))


@pytest.fixture
def table(screen: Screen, tmp_path: Path) -> pd.DataFrame:
    """Two folds of one entry, two seeds each, with known accuracies."""
    results, choices = {}, []
    test = np.arange(0, 40)
    for fold, values in (("series=S1", (0.5, 0.75)), ("series=S2", (0.25, 1.0))):
        setting = Setting("erm & co_1", screen.path, fold, {"alpha": 2}, {})
        for seed, value in enumerate(values):
            name = f"{fold}-{seed}"
            setting.runs[seed] = name
            scores = [
                {"metric": m, "part": "test", "value": value, "n": 40, "note": ""}
                for m in ("accuracy", "macro_f1")
            ]
            results[name] = Result(
                Job(name, screen.path, "", RunConfig(method="erm")), scores, None
            )
            file = predictions_file(tmp_path, name)
            file.parent.mkdir(exist_ok=True)
            np.savez(
                file, row=test, correct=np.arange(40) < 40 * value,
                part=np.array(["test"] * 40), seen=np.ones(40, dtype=bool),
            )  # fmt: skip
        choices.append(Choice("erm & co_1", screen.path, fold, "loss", setting, 0.1, 3, 4))
    choices.append(Choice("none", screen.path, "iid", "loss", None, math.nan, 0, 4))
    values = {"screens": ["s"], "folds": ["iid"], "methods": {"erm": {}}}
    plan = Plan(PlanFile.model_validate(values), {screen.path: screen}, [], {})
    return make_table(plan, choices, results, tmp_path)


def test_means_are_over_seeds_and_then_over_folds(table: pd.DataFrame, screen: Screen) -> None:
    found = table.set_index("fold")
    assert list(found.index) == ["series=S1", "series=S2", "iid", "mean of 2 folds"]
    assert found.loc["series=S1", "test_accuracy_mean"] == pytest.approx(0.625)
    assert found.loc["series=S1", "test_accuracy_sd"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    of_folds = [np.mean([0.5, 0.25]), np.mean([0.75, 1.0])]
    mean = found.loc["mean of 2 folds"]
    assert mean["test_accuracy_mean"] == pytest.approx(np.mean(of_folds))
    assert mean["test_accuracy_sd"] == pytest.approx(np.std(of_folds, ddof=1))
    assert found.loc["iid", "setting"] == "none has finished"
    assert found.loc["series=S1", "interval_over"] == "seeds and wells"
    assert physical_well(screen.table, screen.roles)[:40].nunique() > 1
    low, high = found.loc["series=S1", ["test_accuracy_low", "test_accuracy_high"]]
    assert low < 0.625 < high


def test_the_table_is_written_for_readers_and_for_machines(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    write_table(table, tmp_path)
    back = pd.read_csv(tmp_path / "table.csv")
    assert list(back.columns) == list(table.columns)
    marked = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(marked) == 2 + len(table)
    assert len({line.count("|") for line in marked}) == 1
    assert any("| 0.625 ± 0.177 |" in line for line in marked)
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"erm \& co\_1 & series=S1 & loss & alpha 2" in latex
    assert r"$\pm$" in latex
    shown = read_shown_table(tmp_path)
    told = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in marked[2:]]
    assert shown.to_numpy().tolist() == told
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"table\.csv"):
        read_shown_table(tmp_path)


def test_names_that_a_spreadsheet_would_compute_are_marked_and_come_back(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    hostile = table.assign(method="=1+1", setting="@SUM(A1)", fold=[*table["fold"][:-1], "-f=1"])
    write_table(hostile, tmp_path)
    raw = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    assert set(raw["method"]) == {"'=1+1"}
    assert set(raw["setting"]) == {"'@SUM(A1)"}
    assert raw["fold"].iloc[-1] == "'-f=1"
    back = read_shown_table(tmp_path)
    pd.testing.assert_frame_equal(back, shown_table(hostile))
    assert set(back["method"]) == {"=1+1"}


def test_a_score_that_has_no_rows_is_a_dash(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, tmp_path)
    shown = read_shown_table(tmp_path)
    assert set(shown["accuracy, val"]) == {"–"}
