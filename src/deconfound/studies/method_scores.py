"""What each method of a study reads over its held-out groups and seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from deconfound.experiments.choice import Chosen
from deconfound.experiments.running.chain import main_block
from deconfound.experiments.verdict import paired_differences

F1, READABLE, KEPT = "macro_f1", "probe_environment_macro_f1", "probe_label_macro_f1"


@dataclass(frozen=True)
class Score:
    """What a method reads, over held-out groups and seeds."""

    mean: float = math.nan
    sd: float = math.nan
    """Over seeds, of the mean over groups; NaN of one seed."""
    n: int = 0
    """Runs."""
    chance: float = math.nan
    """Mean score of the same answers dealt out at random."""


@dataclass(frozen=True)
class Gain:
    """By how much a method is above the baseline on held-out groups, macro-F1."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    """Bootstrap interval of 95 % over groups and seeds; NaN of too few."""
    p: float = math.nan
    """Of the test that flips the sign of each group's difference; NaN of one group."""
    groups: int = 0
    seeds: int = 0


@dataclass(frozen=True)
class OfMethod:
    """One line of the leaderboard."""

    held_out: Score
    in_distribution: Score
    environment_readable: Score
    """Of a linear probe of the environment on other rows of the training groups, macro-F1."""
    biology_kept: Score | None
    """Of a linear probe of the label on held-out rows, macro-F1; None where it was not measured."""
    chosen_by_score: float
    """Mean macro-F1 of the groups left out beside each held-out one; NaN where none was."""
    difference: Gain | None
    saw_held_out: bool
    """Whether use was made of images of held-out groups, without their labels."""


def of_method(
    scores: pd.DataFrame,
    name: str,
    units: Mapping[str, str],
    chosen: Sequence[Chosen],
    baseline: str,
) -> OfMethod:
    """What `name` reads on the held-out folds, the keys of `units`, and its gain there."""
    folds = list(units)
    own = scores[scores["method"] == name]
    compared = [one.scores.get(name, math.nan) for one in chosen if one.groups]
    notes = own["note"].fillna("").astype(str)
    return OfMethod(
        held_out=_score(own, F1, "test", folds),
        in_distribution=_score(own, F1, "id_test", folds),
        environment_readable=_probed(own, READABLE, None),
        biology_kept=kept if (kept := _probed(own, KEPT, "test")).n else None,
        chosen_by_score=float(np.mean(compared)) if compared else math.nan,
        difference=None if name == baseline else gain_of(scores, name, units, baseline),
        saw_held_out=bool(notes.str.contains("of test rows").any()),
    )


def _probed(own: pd.DataFrame, metric: str, part: str | None) -> Score:
    """What a probe reads of a method's main block, over the folds whose embeddings are measured."""
    blocks = own[own["metric"] == metric]
    if blocks.empty:
        return Score()
    block = main_block(list(blocks["representation"]))
    of_block = own[own["representation"] == block]
    return _score(of_block, metric, part, list(blocks["fold"].unique()))


def _of(scores: pd.DataFrame, metric: str, part: str | None, folds: list[str]) -> pd.DataFrame:
    kept = (scores["metric"] == metric) & scores["fold"].isin(folds)
    return scores[kept if part is None else kept & (scores["part"] == part)]


def _score(scores: pd.DataFrame, metric: str, part: str | None, folds: list[str]) -> Score:
    found = _of(scores, metric, part, folds).dropna(subset=["value"])
    if found.empty:
        return Score()
    of_seed = found.groupby("seed")["value"].mean()
    chance = _of(scores, f"{metric}_chance", part, folds)["value"].mean()
    sd = float(of_seed.std(ddof=1)) if len(of_seed) > 1 else math.nan
    return Score(float(found["value"].mean()), sd, len(found), float(chance))


def mean_score(scores: pd.DataFrame, metric: str, part: str, folds: list[str]) -> float:
    """Mean of a metric over folds and seeds; NaN where there is none."""
    return float(_of(scores, metric, part, folds)["value"].mean())


def gain_of(
    scores: pd.DataFrame, name: str, units: Mapping[str, str], baseline: str
) -> Gain | None:
    """The difference of `name` from the baseline; None where no group has both.

    `units` has for each fold the unit that is drawn: folds of one unit, such as a series and its
    plates, count as one group, by their mean.
    """
    pair = scores[scores["method"].isin([name, baseline]) & scores["fold"].isin(list(units))]
    pair = pair.assign(fold=pair["fold"].map(units))
    folds = list(dict.fromkeys(units.values()))
    found = paired_differences(pair, baseline, folds)
    if not found:
        return None
    (one,) = found
    return Gain(one.mean, one.low, one.high, _p(pair, name, folds, baseline), one.folds, one.seeds)


def _p(pair: pd.DataFrame, name: str, folds: list[str], baseline: str) -> float:
    """Two-sided p of the mean over groups, with the sign of each group's difference flipped."""
    rows = _of(pair, F1, "test", folds)
    rows = rows[rows["representation"] == "prediction"]
    table = rows.pivot_table(index=["fold", "seed"], columns="method", values="value").dropna()
    of_group = (table[name] - table[baseline]).groupby(level="fold").mean().to_numpy()
    if len(of_group) < 2:
        return math.nan
    tested = permutation_test(
        (of_group,), np.mean, permutation_type="samples", n_resamples=9_999, rng=0
    )
    return float(tested.pvalue)


def or_last(value: float) -> float:
    """A value to sort by: NaN below all others."""
    return -math.inf if math.isnan(value) else value
