"""Groups left out beside a held-out one, and the runs that two choices share."""

from pathlib import Path
from typing import Any

from deconfound.config import DataOptions, validated
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.experiments.layout import make_plan
from deconfound.experiments.nested import Pair, _beside, pairs
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile


def planned(screen: Screen, **values: Any) -> Plan:
    wanted = {"screens": [str(screen.path)], "choose": True, "methods": {"erm": {}}} | values
    return make_plan(Path("plan.yaml"), validated(PlanFile, wanted, "plan.yaml"))


def test_of_five_groups_each_is_paired_with_all_others_and_of_more_with_four() -> None:
    five, nine = list("abcde"), list("abcdefghi")
    assert {pair.other("a") for pair in _beside(five, "a")} == set("bcde")
    assert {pair.other("a") for pair in _beside(nine, "a")} == set("bchi")
    for ring in (five, nine):
        for one in ring:
            for pair in _beside(ring, one):
                assert pair in _beside(ring, pair.other(one))
    assert _beside(["a", "b"], "a") == [Pair("a", "b")]
    assert _beside(["a"], "a") == []


def test_the_other_group_is_scored_as_what_it_is_in_the_run() -> None:
    pair = Pair("plate=a", "plate=b")
    assert (pair.other("plate=a"), pair.part_of_other("plate=a")) == ("plate=b", "ood_val")
    assert (pair.other("plate=b"), pair.part_of_other("plate=b")) == ("plate=a", "test")


def test_neither_group_of_a_pair_trains(screen: Screen) -> None:
    options = DataOptions(fold="plate=S1/P1")
    found = pairs(screen, options, "plate=S1/P1")
    assert found
    for pair in found:
        problem = pose(screen, options.model_copy(update=pair._asdict()))
        train = screen.table.iloc[problem.fold.rows("train")]
        for fold in pair:
            series, plate = fold.partition("=")[2].split("/")
            assert not ((train["series"] == series) & (train["plate"] == plate)).any()
        other = problem.fold.rows("ood_val" if pair.fold == "plate=S1/P1" else "test")
        assert len(other)


def test_labels_of_held_out_rows_change_neither_pairs_nor_who_trains(screen: Screen) -> None:
    fold = "plate=S1/P1"
    before = pairs(screen, DataOptions(fold=fold), fold)
    assert before == pairs(screen, DataOptions(fold=fold, label="series"), fold)


def test_two_folds_share_the_run_without_both(screen: Screen) -> None:
    plan = planned(screen, folds=["all groups of plate"])
    of_fold = {setting.fold: setting.nested for setting in plan.settings}
    assert len(of_fold) > 2
    shared = 0
    for fold, nested in of_fold.items():
        for pair, run in nested.items():
            other = pair.other(fold)
            assert plan.jobs[run].config.data.fold == pair.fold
            assert plan.jobs[run].config.data.without == pair.without
            if pair in of_fold.get(other, {}):
                assert of_fold[other][pair] == run
                shared += 1
    assert shared
    names = {run for nested in of_fold.values() for run in nested.values()}
    assert names <= {job.name for job in plan.search()}
    outer = {run for setting in plan.settings for run in setting.runs.values()}
    assert not names & outer


def test_a_method_that_compares_environments_is_not_trained_on_one(screen: Screen) -> None:
    data = {"environment": ["series"]}
    both = {"irm": {}, "erm": {}}
    plan = planned(screen, data=data, folds=["plate=S1/P1"], methods=both)
    nested = {setting.entry: set(setting.nested) for setting in plan.settings}
    of_one_series = Pair("plate=S1/P1", "plate=S1/P2")
    assert of_one_series in nested["erm"]
    assert nested["erm"] - nested["irm"] == {of_one_series}


def test_where_time_may_end_entries_take_turns(screen: Screen) -> None:
    both = {"mixstyle": {}, "erm": {}}
    plan = planned(screen, folds=["plate=S1/P1", "plate=S2/P1"], methods=both)
    jobs = plan.alternating(plan.search())
    assert sorted(job.name for job in jobs) == sorted(job.name for job in plan.search())
    methods = [job.config.method for job in jobs]
    assert methods == ["mixstyle", "erm"] * (len(jobs) // 2)


def test_without_choose_no_run_is_added(screen: Screen) -> None:
    plan = planned(screen, folds=["all groups of plate"], choose=False)
    assert all(not setting.nested for setting in plan.settings)
    assert len(plan.jobs) == len(plan.settings)
