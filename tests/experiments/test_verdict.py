"""Paired differences: planted ones are found, pairs are of one fold and seed."""

import math

import numpy as np
import pandas as pd
import pytest

from deconfound.experiments.verdict import _interval_of_pairs, paired_differences

FOLDS = [f"plate={name}" for name in "ABCD"]


def scores(gain: float, noise: float, seeds: int = 3) -> pd.DataFrame:
    """Macro-F1 of "erm" and "other" on four plates, which differ far more than the methods do."""
    stream = np.random.default_rng(0)
    rows = []
    for number, fold in enumerate(FOLDS):
        for seed in range(seeds):
            plate = 0.2 + 0.2 * number
            for method, value in (
                ("erm", plate),
                ("other", plate + gain + stream.normal(0, noise)),
            ):
                about = {"representation": "prediction", "metric": "macro_f1", "part": "test"}
                rows.append({"method": method, "fold": fold, "seed": seed, "value": value} | about)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("gain", "said"), [(0.05, "above"), (-0.05, "below")])
def test_a_planted_difference_is_found_though_plates_differ_more(gain: float, said: str) -> None:
    (found,) = paired_differences(scores(gain, 0.01), "erm", FOLDS)
    assert (found.method, found.baseline, found.folds, found.seeds) == ("other", "erm", 4, 3)
    assert found.mean == pytest.approx(gain, abs=0.01)
    assert found.low < found.mean < found.high
    assert f"other is {said} erm" in found.text()
    assert "4 folds and 3 seeds" in found.text()


def test_no_difference_is_not_told_apart() -> None:
    (found,) = paired_differences(scores(0, 0.05), "erm", FOLDS)
    assert found.low < 0 < found.high
    assert "not told apart from erm" in found.text()


def test_only_pairs_of_the_same_fold_and_seed_count() -> None:
    """A seed that the other method lacks would shift its mean by the plates' own differences."""
    table = scores(0.05, 0)
    lacking = table[~((table.method == "other") & (table.fold == FOLDS[0]) & (table.seed == 0))]
    (found,) = paired_differences(lacking, "erm", FOLDS)
    assert found.mean == pytest.approx(0.05)
    (chosen,) = paired_differences(table, "erm", FOLDS[:2])
    assert chosen.folds == 2


def test_one_pair_has_no_interval_and_no_pair_no_difference() -> None:
    table = scores(0.05, 0, seeds=1)
    (found,) = paired_differences(table, "erm", FOLDS[:1])
    assert math.isnan(found.low)
    assert "1 fold and 1 seed; too few to tell apart" in found.text()
    assert paired_differences(table, "scbd", FOLDS) == []
    assert paired_differences(table[table.method == "other"], "erm", FOLDS) == []


def test_other_scores_do_not_count() -> None:
    table = scores(0.05, 0.01)
    more = table.assign(value=9.0)
    noise = [more.assign(metric="accuracy"), more.assign(part="val"),
             more.assign(representation="content"), more.assign(fold="iid")]  # fmt: skip
    assert paired_differences(pd.concat([table, *noise]), "erm", FOLDS) == paired_differences(
        table, "erm", FOLDS
    )


def test_identical_methods_are_rarely_told_apart() -> None:
    """With the fewest groups and seeds that have an interval, which promises 5 %."""
    told = []
    for draw in range(100):
        stream = np.random.default_rng(draw)
        noise = scores(0, 0, seeds=2)
        noise["value"] = stream.normal(size=len(noise))
        (found,) = paired_differences(noise, "erm", FOLDS[:3])
        told.append(found.low > 0 or found.high < 0)
        (fewer,) = paired_differences(noise, "erm", FOLDS[:2])
        assert math.isnan(fewer.low)
    assert np.mean(told) <= 0.12


@pytest.mark.parametrize(("folds", "most"), [(3, 0.12), (4, 0.12), (8, 0.10)])
def test_of_few_folds_the_interval_seldom_leaves_out_a_difference_of_0(
    folds: int, most: float
) -> None:
    """Folds differ more than seeds; 95 % intervals should leave 0 out in one of twenty."""
    stream = np.random.default_rng(folds)
    left_out = 0
    for _ in range(150):
        grid = stream.normal(0, 1, (folds, 1)) + stream.normal(0, 0.5, (folds, 3))
        low, high = _interval_of_pairs(grid, "method")
        assert low < grid.mean() < high
        left_out += low > 0 or high < 0
    assert left_out / 150 <= most
