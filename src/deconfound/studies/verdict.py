"""The verdict of a study: does what was chosen help on groups that training never saw?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from deconfound.data.tables.table import listed
from deconfound.display.numbers import counted, without_nan
from deconfound.experiments.choice import Chosen
from deconfound.experiments.running.chain import main_block
from deconfound.experiments.verdict import FEWEST_FOLDS, FEWEST_SEEDS, paired_differences

Word = Literal["helps", "no difference", "harms", "cannot be told"]
F1, READABLE = "macro_f1", "probe_environment_macro_f1"
CHOSEN = " chosen "
"""Stands for the method chosen for each group; no method has this name."""
SAME = 0.02
"""An interval of the difference inside ± this much says that there is none."""
CONFOUNDED = 0.9
"""Shared information of label and environment from which neither can be told from the other."""
COVERED = 0.5
"""Share of a held-out group's rows whose label was trained, below which nothing can be told."""


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
    biology_kept: Score | None
    chosen_by_score: float
    """Mean macro-F1 of the groups left out beside each held-out one; NaN where none was."""
    difference: Gain | None
    saw_held_out: bool
    """Whether use was made of images of held-out groups, without their labels."""


@dataclass(frozen=True)
class Verdict:
    """What a study says."""

    source: str
    label: str
    environment: str
    hold_out: list[str]
    baseline: str
    verdict: Word
    sentence: str
    why: str
    chosen_by: str
    recommended: str
    """The method for the next group: the best over all groups left out in turn."""
    difference: Gain | None
    """Of what was chosen for each group without a look at it, from the baseline."""
    held_out: Score
    in_distribution: Score
    environment_readable: Score
    """Of what was chosen."""
    methods: dict[str, OfMethod]
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Of each held-out group its fold, what was chosen, and the mean score of each method."""

    def record(self) -> dict[str, Any]:
        """As JSON takes it: null for NaN."""
        gain = self.difference or Gain()
        found: dict[str, Any] = without_nan(asdict(replace(self, difference=gain)))
        return {"format": 1} | found

    def lines(self) -> list[str]:
        """At most ten lines for a terminal."""
        names = sorted(self.methods, key=lambda name: -_last(self.methods[name].held_out.mean))
        rows = [_line(name, self.methods[name]) for name in names[:6]]
        more = [f"and {len(names) - 6} more in verdict.json"] if len(names) > 6 else []
        return [self.sentence, self.why, self.chosen_by, *rows, *more]


def make_verdict(
    scores: pd.DataFrame,
    chosen: Sequence[Chosen],
    names: Sequence[str],
    *,
    source: str,
    label: str,
    environment: str,
    hold_out: Sequence[str],
    shared_information: float,
) -> Verdict:
    """The verdict on `names`, the first of which is the baseline.

    `scores` has the columns of a scores file; `chosen` holds one choice for each held-out group.
    """
    baseline, folds = names[0], [one.fold for one in chosen]
    picked = [
        scores[(scores["method"] == one.name) & (scores["fold"] == one.fold)] for one in chosen
    ]
    both = pd.concat([scores, *(one.assign(method=CHOSEN) for one in picked)])
    methods = {name: _of_method(scores, name, folds, chosen, baseline) for name in names}
    recommended = max(
        (name for name in names if methods[name].held_out.n == methods[baseline].held_out.n),
        key=lambda name: _last(methods[name].held_out.mean),
        default=baseline,
    )
    picks = {one.name for one in chosen}
    gain = _gain(both, CHOSEN, folds, baseline)
    if len(picks) == 1 and baseline not in picks:  # one method everywhere: its own line
        gain = methods[next(iter(picks))].difference
    of_choice = _of_method(both, CHOSEN, folds, chosen, baseline)
    covered = _mean(both[both["method"] == baseline], "class_coverage", "test", folds)
    word, why = _judge(gain, chosen, baseline, shared_information, covered)
    group = listed([level.removeprefix("Metadata_").lower() for level in hold_out])
    sentence = _sentence(word, group, chosen, of_choice.held_out, methods[baseline].held_out, gain)
    groups = [
        {
            "fold": one.fold,
            "chosen": one.name,
            "scores": {n: _mean(scores[scores["method"] == n], F1, "test", [one.fold])
                       for n in names},
        }
        for one in chosen
    ]  # fmt: skip
    return Verdict(
        source, label, environment, list(hold_out), baseline, word, sentence, why,
        _chosen_by(chosen, group), recommended, gain, of_choice.held_out,
        of_choice.in_distribution, of_choice.environment_readable, methods, groups,
    )  # fmt: skip


def _judge(
    gain: Gain | None,
    chosen: Sequence[Chosen],
    baseline: str,
    shared: float,
    covered: float,
) -> tuple[Word, str]:
    if gain is None:
        return "cannot be told", "No held-out group has all the runs yet that a choice is made of."
    if shared >= CONFOUNDED:
        return "cannot be told", (
            f"Labels and batches say nearly the same ({shared:.2f} of 1), so neither can be told "
            "from the other."
        )
    if covered < COVERED:
        return "cannot be told", (
            f"Only {covered:.0%} of the rows of held-out groups have a label that training has."
        )
    if all(one.name == baseline for one in chosen):
        if lacking := _lacking(chosen):
            return (
                "cannot be told",
                f"The choice fell on {baseline}, but without {listed(lacking)}.",
            )
        return "no difference", f"The choice fell on {baseline} itself for every held-out group."
    if math.isnan(gain.low):
        return "cannot be told", (
            f"{counted(gain.groups, 'held-out group')} and {counted(gain.seeds, 'seed')} are too "
            f"few; it takes {FEWEST_FOLDS} and {FEWEST_SEEDS}."
        )
    over = (
        f"95 % interval {gain.low:+.3f} to {gain.high:+.3f} over "
        f"{counted(gain.groups, 'group')} and {counted(gain.seeds, 'seed')}"
    )
    tested = f"{over}, p = {gain.p:.3g} of flipped signs."
    if gain.low > 0:
        return "helps", f"The gain is {gain.mean:+.3f}: {tested}"
    if gain.high < 0:
        return "harms", f"The loss is {gain.mean:+.3f}: {tested}"
    if max(-gain.low, gain.high) <= SAME:
        return "no difference", f"The difference is within ±{SAME}: {tested}"
    return "cannot be told", f"The interval holds 0 and is wider than ±{SAME}: {tested}"


def _sentence(
    word: Word,
    group: str,
    chosen: Sequence[Chosen],
    found: Score,
    baseline: Score,
    gain: Gain | None,
) -> str:
    if gain is None:
        return "Nothing can be told yet."
    names = list(dict.fromkeys(one.name for one in chosen))
    what = names[0] if len(names) == 1 else f"what was chosen ({', '.join(names)})"
    read = (
        f"in a {group} that training never saw, {what} reads the labels with a macro-F1 of "
        f"{found.mean:.2f}, ERM with {baseline.mean:.2f}"
    )
    said = {
        "helps": "It helps", "harms": "It harms", "no difference": "It makes no difference",
        "cannot be told": "Whether it helps cannot be told",
    }[word]  # fmt: skip
    return f"{said}: {read}."


def _chosen_by(chosen: Sequence[Chosen], group: str) -> str:
    if not chosen:
        return "Nothing was chosen yet."
    without = ""
    if lacking := _lacking(chosen):
        without = f" Runs of {listed(lacking)} that it takes are not done or failed."
    beside = [len(one.groups) for one in chosen if one.groups]
    kept = "the method after ERM is kept unless it loses more than 0.01 in distribution."
    if not beside:
        return (
            f"Chosen without the held-out {group}: no other can be left out beside it, as with two "
            f"groups, so {kept}{without}"
        )
    if len(beside) < len(chosen):
        without = f" Where none can be, {kept}{without}"
    most = f"{min(beside)} to {max(beside)}" if min(beside) < max(beside) else str(beside[0])
    return (
        f"Chosen for each held-out {group} without a look at it: the best mean macro-F1 on "
        f"{most} other group{'s' * (max(beside) > 1)}, left out of training in turn beside it."
        f"{without}"
    )


def _lacking(chosen: Sequence[Chosen]) -> list[str]:
    return list(dict.fromkeys(name for one in chosen for name in one.lacking))


def _of_method(
    scores: pd.DataFrame, name: str, folds: list[str], chosen: Sequence[Chosen], baseline: str
) -> OfMethod:
    own = scores[scores["method"] == name]
    compared = [one.scores.get(name, math.nan) for one in chosen if one.groups]
    notes = own["note"].fillna("").astype(str)
    return OfMethod(
        held_out=_score(own, F1, "test", folds),
        in_distribution=_score(own, F1, "id_test", folds),
        environment_readable=_readable(own),
        biology_kept=None,
        chosen_by_score=float(np.mean(compared)) if compared else math.nan,
        difference=None if name == baseline else _gain(scores, name, folds, baseline),
        saw_held_out=bool(notes.str.contains("of test rows").any()),
    )


def _readable(own: pd.DataFrame) -> Score:
    blocks = own[own["metric"] == READABLE]
    if blocks.empty:
        return Score()
    block = main_block(list(blocks["representation"]))
    kept = own[own["representation"] == block]
    return _score(kept, READABLE, None, list(blocks["fold"].unique()))


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


def _mean(scores: pd.DataFrame, metric: str, part: str, folds: list[str]) -> float:
    return float(_of(scores, metric, part, folds)["value"].mean())


def _gain(scores: pd.DataFrame, name: str, folds: list[str], baseline: str) -> Gain | None:
    pair = scores[scores["method"].isin([name, baseline])]
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


def _line(name: str, one: OfMethod) -> str:
    inside, read = one.in_distribution, one.environment_readable
    said = f"{name}: held out {_text(one.held_out)}, in distribution {_text(inside)}"
    if read.n:
        said += f", environment read {read.mean:.2f}"
    return said + (" (images of held-out groups used)" if one.saw_held_out else "")


def _text(score: Score) -> str:
    if not score.n:
        return "–"
    spread = "" if math.isnan(score.sd) else f" ± {score.sd:.3f}"
    return f"{score.mean:.3f}{spread}"


def _last(value: float) -> float:
    return -math.inf if math.isnan(value) else value
