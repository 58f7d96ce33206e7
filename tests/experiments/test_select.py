import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deconfound.evaluation.scores import COLUMNS
from deconfound.experiments.plan import Job, Plan, Setting
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.select import Result, choose, read_result
from deconfound.experiments.table import score_table
from deconfound.runs.config import RunConfig

PLACE = Path("screen")


def result(name: str, val: float, loss: float, ood_val: float = math.nan) -> Result:
    about: dict[str, Any] = {"metric": "accuracy", "n": 10, "note": ""}
    scores = [about | {"part": "val", "value": val}, about | {"part": "test", "value": 1 - val}]
    if not math.isnan(ood_val):
        scores = [about | {"part": "ood_val", "value": ood_val}]
    return Result(Job(name, PLACE, "", RunConfig(method="erm")), scores, loss)


def plan_of(settings: list[Setting], *rules: str) -> Plan:
    values = {"screens": ["s"], "folds": ["iid"], "methods": {"erm": {}}, "select": rules}
    return Plan(PlanFile.model_validate(values), {}, settings, {})


def three_settings() -> tuple[list[Setting], dict[str, Result]]:
    """Highest validation accuracy: a; lowest loss: b; best without an environment: c."""
    settings = [
        Setting("erm", PLACE, "iid", {"x": x}, {0: f"{x}0", 1: f"{x}1"}, {(0, "E"): f"{x}e"})
        for x in "abc"
    ]
    runs = {
        "a0": result("a0", 0.9, 3.0), "a1": result("a1", 0.9, 3.0),
        "b0": result("b0", 0.99, 1.0), "b1": result("b1", 0.5, 2.0),
        "c0": result("c0", 0.6, 4.0), "c1": result("c1", 0.6, 4.0),
        "ae": result("ae", 0, 0, 0.1), "be": result("be", 0, 0, 0.2), "ce": result("ce", 0, 0, 0.3),
    }  # fmt: skip
    return settings, runs


def test_each_rule_takes_its_best_setting() -> None:
    settings, results = three_settings()
    found = choose(plan_of(settings, "accuracy", "loss", "loto"), results)
    taken = {c.rule: (c.setting.values["x"], c.criterion) for c in found if c.setting}
    assert taken == {"accuracy": ("a", 0.9), "loss": ("b", 1.5), "loto": ("c", 0.3)}
    assert {(c.finished, c.settings) for c in found} == {(3, 3)}


def test_a_setting_that_lacks_a_run_takes_no_part() -> None:
    settings, results = three_settings()
    del results["a1"], results["ce"]
    found = {c.rule: c for c in choose(plan_of(settings, "accuracy", "loto"), results)}
    assert found["accuracy"].setting == settings[1]
    assert found["loto"].setting == settings[1]
    assert found["loto"].finished == 1
    for name in list(results):
        del results[name]
    empty = choose(plan_of(settings, "accuracy"), results)[0]
    assert empty.setting is None
    assert math.isnan(empty.criterion)


def test_seeds_that_are_not_searched_decide_nothing() -> None:
    """On seed 0 alone b is the most accurate, and c needs no other run to take part."""
    settings, results = three_settings()
    settings = [replace(setting, search_seeds=(0,)) for setting in settings]
    found = choose(plan_of(settings, "accuracy", "loss", "loto"), results)
    taken = {c.rule: (c.setting.values["x"], c.criterion) for c in found if c.setting}
    assert taken == {"accuracy": ("b", 0.99), "loss": ("b", 1.0), "loto": ("c", 0.3)}
    for name in ("a1", "b1", "c1"):
        del results[name]
    assert choose(plan_of(settings, "accuracy", "loss", "loto"), results) == found
    del results["b0"]
    assert choose(plan_of(settings, "accuracy"), results)[0].setting == settings[0]


def test_a_single_setting_needs_no_rule() -> None:
    settings, results = three_settings()
    (found,) = choose(plan_of(settings[:1], "accuracy", "loss"), results)
    assert (found.rule, found.setting) == ("only setting", settings[0])


def test_no_score_of_the_test_decides() -> None:
    """Accuracy on the test is highest where the validation is lowest, and is not looked at."""
    settings, results = three_settings()
    before = choose(plan_of(settings, "accuracy", "loss", "loto"), results)
    for one in results.values():
        for score in one.scores:
            if score["part"] == "test":
                score["value"] = math.nan
    assert [c.setting for c in choose(plan_of(settings, "accuracy", "loss", "loto"), results)] == [
        c.setting for c in before
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"scores": 1}'])
def test_a_result_that_is_not_whole_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "r.json").write_text(text)
    assert read_result(tmp_path, Job("r", PLACE, "", RunConfig(method="erm"))) is None


def test_scores_have_the_columns_of_a_scores_file() -> None:
    _, results = three_settings()
    table = score_table(results.values())
    assert list(table.columns) == COLUMNS
    assert len(table) == 6 * 2 + 3
    assert set(table["representation"]) == {"prediction"}
