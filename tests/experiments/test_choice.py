"""What is chosen for a held-out group, by runs that trained without it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deconfound.config import validated
from deconfound.data.screens.screen import Screen
from deconfound.evaluation.scores import COLUMNS
from deconfound.experiments.choice import choose_chains
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.chain import Task
from deconfound.experiments.select import Result
from deconfound.files import seal

FOLD = "plate=S1/P1"


@pytest.fixture
def plan(screen: Screen) -> Plan:
    values = {
        "screens": [str(screen.path)], "choose": True, "folds": ["all groups of plate"],
        "methods": {"erm": {}, "mixstyle": {}}, "chains": ["erm", "mixstyle", "erm+knn"],
    }  # fmt: skip
    return make_plan(Path("plan.yaml"), validated(PlanFile, values, "plan.yaml"))


def results(plan: Plan, values: dict[str, dict[str, float]]) -> dict[str, Result]:
    """Results whose macro-F1 of each part follows from the method."""
    return {
        name: Result(
            job,
            [{"metric": "macro_f1", "part": part, "value": value, "n": 5, "note": ""}
             for part, value in values[job.config.method].items()],
            None,
        )
        for name, job in plan.jobs.items()
    }  # fmt: skip


def score_chains(plan: Plan, out: Path, value: float) -> None:
    """Write the scores of erm+knn for every run that chooses."""
    (chain,) = (one for one in plan.chains if one.is_post_hoc)
    for setting in plan.settings:
        for run in setting.nested.values() if setting.entry == "erm" else ():
            rows: list[dict[str, Any]] = [
                {"metric": "macro_f1", "part": part, "value": value} for part in ("ood_val", "test")
            ]
            seal.write_frame(Task(chain, False).file(out, run), pd.DataFrame(rows, columns=COLUMNS))


def test_the_best_on_the_groups_beside_the_held_out_one_is_chosen(
    plan: Plan, tmp_path: Path
) -> None:
    inner = {"erm": {"ood_val": 0.4, "test": 0.4}, "mixstyle": {"ood_val": 0.6, "test": 0.6}}
    score_chains(plan, tmp_path, 0.5)
    found = choose_chains(plan, plan.settings, results(plan, inner), tmp_path, "erm")
    assert {one.fold for one in found} == {setting.fold for setting in plan.settings}
    assert {one.name for one in found} == {"mixstyle"}
    assert found[0].scores == pytest.approx({"erm": 0.4, "mixstyle": 0.6, "erm+knn": 0.5})
    score_chains(plan, tmp_path / "other", 0.9)
    found = choose_chains(plan, plan.settings, results(plan, inner), tmp_path / "other", "erm")
    assert {one.name for one in found} == {"erm+knn"}


def test_the_held_out_scores_of_the_outer_runs_are_not_looked_at(
    plan: Plan, tmp_path: Path
) -> None:
    inner = {"erm": {"ood_val": 0.4, "test": 0.4}, "mixstyle": {"ood_val": 0.6, "test": 0.6}}
    done = results(plan, inner)
    first = choose_chains(plan, plan.settings, done, tmp_path, "erm")
    for setting in plan.settings:
        for run in setting.runs.values():
            worst = [{"metric": "macro_f1", "part": "test", "value": 0.0, "n": 5, "note": ""}]
            done[run] = Result(done[run].job, worst, None)
    assert choose_chains(plan, plan.settings, done, tmp_path, "erm") == first


def test_a_method_that_failed_beside_one_group_takes_no_part(plan: Plan, tmp_path: Path) -> None:
    inner = {"erm": {"ood_val": 0.4, "test": 0.4}, "mixstyle": {"ood_val": 0.6, "test": 0.6}}
    done = results(plan, inner)
    setting = next(s for s in plan.settings if s.fold == FOLD and s.entry == "mixstyle")
    del done[next(iter(setting.nested.values()))]
    found = {one.fold: one for one in choose_chains(plan, plan.settings, done, tmp_path, "erm")}
    assert found[FOLD].name == "erm"
    assert "mixstyle" not in found[FOLD].scores
    assert "mixstyle" in found[FOLD].lacking


def test_before_the_runs_that_choose_are_done_nothing_is_chosen(plan: Plan, tmp_path: Path) -> None:
    outer = {name for setting in plan.settings for name in setting.runs.values()}
    done = results(plan, {"erm": {"id_test": 0.8}, "mixstyle": {"id_test": 0.8}})
    done = {name: result for name, result in done.items() if name in outer}
    assert choose_chains(plan, plan.settings, done, tmp_path, "erm") == []


@pytest.mark.parametrize(("inside", "chosen"), [(0.795, "mixstyle"), (0.78, "erm")])
def test_of_two_groups_what_loses_little_in_distribution_is_kept(
    screen: Screen, tmp_path: Path, inside: float, chosen: str
) -> None:
    values = {
        "screens": [str(screen.path)], "choose": True, "folds": ["all groups of series"],
        "methods": {"erm": {}, "mixstyle": {}}, "chains": ["erm", "mixstyle"],
    }  # fmt: skip
    plan = make_plan(Path("plan.yaml"), validated(PlanFile, values, "plan.yaml"))
    assert all(not setting.nested for setting in plan.settings)
    scores = {"erm": {"id_test": 0.8}, "mixstyle": {"id_test": inside}}
    found = choose_chains(plan, plan.settings, results(plan, scores), tmp_path, "erm")
    assert [(one.name, one.groups) for one in found] == [(chosen, ())] * 2
