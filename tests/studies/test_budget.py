"""What a budget of minutes buys, and that a study keeps to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deconfound.data.screens.screen import Screen
from deconfound.experiments.running.executors import ExecutorOptions
from deconfound.experiments.running.messages import Order
from deconfound.studies import budget
from deconfound.studies.budget import SIZES, Cost, Size, choose_size
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

ONE = {"erm": Cost(run=2.0, step=0.02, steps=1_500)}


def test_two_short_runs_tell_a_step_and_what_is_beside_steps() -> None:
    cost = budget._cost([(10, 3.0), (30, 5.0)], steps=1_500)
    assert (cost.step, cost.run, cost.steps) == pytest.approx((0.1, 2.0, 1_500))
    assert cost.seconds(0.5) == pytest.approx(2.0 + 75.0)
    noisy = budget._cost([(10, 3.0), (30, 2.9)], steps=100)  # the machine was busy
    assert noisy.step > 0
    assert noisy.run >= 0


def test_with_time_enough_nothing_is_cut() -> None:
    found = choose_size(ONE, [(4, 4)], 10_000, 1, 3)
    assert found.size == SIZES[0]
    assert found.fits
    # 4 groups x 3 seeds, and 6 pairs of groups
    assert found.runs == 4 * 3 + 6
    assert found.estimated_minutes == pytest.approx((18 + 1) * 32 / 60)  # and the one to use


@pytest.mark.parametrize("minutes", [1, 2, 5, 10, 30, 100])
def test_what_is_taken_fits_and_what_comes_before_it_does_not(minutes: float) -> None:
    found = choose_size(ONE, [(8, 8)], minutes, 2, 3)
    assert found.fits == (found.estimated_minutes <= minutes * (1 - budget.RESERVE))
    before = SIZES[: SIZES.index(found.size)]
    for size in before:
        cost = sum(one.seconds(size.share) for one in ONE.values())
        assert budget._runs(8, 8, size) * cost / 2 + cost > 60 * minutes * (1 - budget.RESERVE)


@pytest.mark.parametrize(("groups", "held", "runs"), [
    (4, None, 4 + 6), (4, 3, 3 + 6), (4, 1, 1 + 3), (2, None, 2), (3, None, 3 + 3),
    (10, None, 10 + 20), (10, 3, 3 + 12),
])  # fmt: skip
def test_runs_of_one_entry_are_counted_with_the_pairs_that_choose(
    groups: int, held: int | None, runs: int
) -> None:
    assert budget._runs(groups, groups, Size(held, 1, 1.0)) == runs


def test_more_minutes_never_buy_less() -> None:
    taken = [
        SIZES.index(choose_size(ONE, [(8, 8)], minutes, 2, 3).size) for minutes in range(1, 60)
    ]
    assert taken == sorted(taken, reverse=True)


def test_minutes_that_are_spent_buy_nothing() -> None:
    """Ten minutes of which four went on ingest and timing are six."""
    late = choose_size(ONE, [(8, 8)], 10, 2, 3, spent=4 * 60)
    fewer = choose_size(ONE, [(8, 8)], 10 - 4 / (1 - budget.RESERVE), 2, 3)
    assert late.size == fewer.size != choose_size(ONE, [(8, 8)], 10, 2, 3).size
    assert late.estimated_minutes <= 10 * (1 - budget.RESERVE) - 4


def test_too_few_minutes_are_said() -> None:
    found = choose_size({"erm": Cost(500.0, 1.0, 1_500)}, [(4, 4)], 1, 1, 3)
    assert not found.fits
    assert found.size == SIZES[-1]
    assert "what is not done by then is left out" in found.text()


def test_steps_are_cut_to_fifty_at_least() -> None:
    assert budget.steps_of(1_500, 0.01) == 50
    assert budget.steps_of(30, 0.1) == 30
    assert budget.steps_of(1_500, 0.5) == 750


def test_a_study_with_a_budget_says_what_it_cut_and_goes_on_with_it(
    screen: Screen, tmp_path: Path
) -> None:
    options = CompareOptions(
        methods=("erm",), hold_out=("plate",), batch_size=16, steps=400, budget=0.02, seeds=(0, 1)
    )
    found = compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert found.sentences[0].startswith("budget of 0.02 minutes: 1 groups of a level, 1 seed")
    kept = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert kept["costs"]["erm"]["steps"] == 400
    assert not (tmp_path / "out" / "timing").exists()
    again = compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert json.loads((tmp_path / "out" / "budget.json").read_text()) == kept
    assert again.sentences[0] == found.sentences[0]
    assert found.summary is not None
    assert again.summary is not None
    # the time was over after the first run, and every call does one at least
    assert [(one.before, one.left) for one in (found.summary, again.summary)] == [(0, 3), (1, 2)]
    assert "3 left for a call with more time" in found.summary.text()


def test_seeds_that_were_not_asked_for_cut_nothing() -> None:
    one = choose_size(ONE, [(4, 4)], 10_000, 1, 1)
    assert one.size == (None, 1, 1.0)
    assert choose_size(ONE, [(4, 4)], 10_000, 1, 5).size == (None, 5, 1.0)


def test_groups_that_are_left_out_beside_one_held_out_cost_time() -> None:
    # one of five groups is held out, with each of three seeds, and with each of the other four
    assert choose_size(ONE, [(1, 5)], 10_000, 1, 3).runs == 3 + 4


def test_a_budget_takes_the_seeds_and_groups_that_were_asked_for(
    screen: Screen, tmp_path: Path
) -> None:
    options = CompareOptions(
        methods=("erm", "mixstyle"), hold_out=("plate",), folds_per_level=1, seeds=(7,),
        batch_size=16, steps=2, budget=100,
    )  # fmt: skip
    out = tmp_path / "out"
    (out / "timing").mkdir(parents=True)
    (out / "study.yaml").write_text("")  # of a call that was killed while it took times
    (out / "timing" / "old").write_text("")
    compare(screen.path, out, options, workers=1, quiet=True)
    runs = pd.read_csv(out / "runs.csv", keep_default_na=False)
    assert set(runs["seed"]) == {7}
    assert len(runs[runs["without"] == ""]) == 2
    fewer = options.model_copy(update={"methods": ("erm",)})
    assert compare(screen.path, out, fewer, workers=1, quiet=True).best == "erm"


def test_timed_runs_are_corrected_as_those_that_choose(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []
    run = ExecutorOptions.run

    def watched(self: ExecutorOptions, given: Sequence[Order], **more: Any) -> Any:
        orders.extend(one for one in given if one.out.endswith("timing"))
        return run(self, given, **more)

    monkeypatch.setattr(ExecutorOptions, "run", watched)
    options = CompareOptions(
        methods=("erm", "erm+standardise+knn"), hold_out=("plate=S1/P1",), seeds=(0,),
        batch_size=16, steps=2, budget=100,
    )  # fmt: skip
    compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert len(orders) == 2
    for order in orders:
        (task,) = json.loads(order.chains)
        assert task["chain"]["correction"] == "standardise"
