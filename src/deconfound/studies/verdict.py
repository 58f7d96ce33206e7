"""The verdict of a study: does what was chosen help on groups that training never saw?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from deconfound.data.tables.table import listed
from deconfound.display.numbers import counted, without_nan
from deconfound.experiments.choice import Chosen
from deconfound.experiments.verdict import FEWEST_FOLDS, FEWEST_SEEDS
from deconfound.studies.method_scores import (
    F1,
    Gain,
    OfMethod,
    Score,
    gain_of,
    mean_score,
    of_method,
    or_last,
)

Word = Literal["helps", "no difference", "harms", "cannot be told"]
CHOSEN = " chosen "
"""Stands for the method chosen for each group; no method has this name."""
SAME = 0.02
"""An interval of the difference inside ± this much says that there is none."""
CONFOUNDED = 0.9
"""Shared information of label and environment from which neither can be told from the other."""
COVERED = 0.5
"""Share of a held-out group's rows whose label was trained, below which nothing can be told."""


@dataclass(frozen=True)
class Verdict:
    """What a study says."""

    command: str
    """What makes the study again, but for where."""
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
        names = sorted(self.methods, key=lambda name: -or_last(self.methods[name].held_out.mean))
        rows = [_line(name, self.methods[name]) for name in names[:6]]
        more = [f"and {len(names) - 6} more in verdict.json"] if len(names) > 6 else []
        return [self.sentence, self.why, self.chosen_by, *rows, *more]


def make_verdict(
    scores: pd.DataFrame,
    chosen: Sequence[Chosen],
    names: Sequence[str],
    *,
    command: str,
    source: str,
    label: str,
    environment: str,
    hold_out: Sequence[str],
    shared_information: float,
    units: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on `names`, the first of which is the baseline.

    `scores` has the columns of a scores file; `chosen` holds one choice for each held-out group.
    `units` has of each fold the group that counts as one in intervals, as a series whose plates are
    held out too; each fold on its own if not given.
    """
    baseline, folds = names[0], [one.fold for one in chosen]
    units = {fold: (units or {}).get(fold, fold) for fold in folds}
    picked = [
        scores[(scores["method"] == one.name) & (scores["fold"] == one.fold)] for one in chosen
    ]
    both = pd.concat([scores, *(one.assign(method=CHOSEN) for one in picked)])
    methods = {name: of_method(scores, name, units, chosen, baseline) for name in names}
    recommended = max(
        (name for name in names if methods[name].held_out.n == methods[baseline].held_out.n),
        key=lambda name: or_last(methods[name].held_out.mean),
        default=baseline,
    )
    picks = dict.fromkeys(one.name for one in chosen)
    gain = gain_of(both, CHOSEN, units, baseline)
    if len(picks) == 1 and baseline not in picks:  # one method everywhere: its own line
        gain = methods[next(iter(picks))].difference
    of_choice = of_method(both, CHOSEN, units, chosen, baseline)
    covered = mean_score(both[both["method"] == baseline], "class_coverage", "test", folds)
    word, why = _judge(gain, chosen, names, shared_information, covered)
    group = listed([level.removeprefix("Metadata_").lower() for level in hold_out])
    picked_scores = of_choice.held_out, methods[baseline].held_out
    sentence = _sentence(word, group, picks, list(picks) == [baseline], *picked_scores, gain)
    groups = [
        {
            "fold": one.fold,
            "chosen": one.name,
            "scores": {n: mean_score(scores[scores["method"] == n], F1, "test", [one.fold])
                       for n in names},
        }
        for one in chosen
    ]  # fmt: skip
    return Verdict(
        command, source, label, environment, list(hold_out), baseline, word, sentence, why,
        _chosen_by(chosen, group), recommended, gain, of_choice.held_out,
        of_choice.in_distribution, of_choice.environment_readable, methods, groups,
    )  # fmt: skip


def _judge(
    gain: Gain | None,
    chosen: Sequence[Chosen],
    names: Sequence[str],
    shared: float,
    covered: float,
) -> tuple[Word, str]:
    baseline = names[0]
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
    if len(names) == 1:
        return "cannot be told", f"Only {baseline} was compared; name another method."
    if all(one.name == baseline for one in chosen):
        if lacking := _lacking(chosen):
            return (
                "cannot be told",
                f"The choice fell on {baseline}, but without {listed(lacking)}.",
            )
        return "no difference", f"The choice fell on {baseline} itself for every held-out group."
    if math.isnan(gain.low):
        return "cannot be told", _too_few(gain)
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


def _too_few(gain: Gain) -> str:
    """What an interval lacks: groups, seeds or both."""
    every = ("held-out groups", gain.groups, FEWEST_FOLDS), ("seeds", gain.seeds, FEWEST_SEEDS)
    lacking = [one for one in every if one[1] < one[2]]
    takes = " and ".join(f"{fewest} {what}" for what, _, fewest in lacking)
    there = " and ".join(str(found) for _, found, _ in lacking)
    return f"An interval takes {takes}; there {'is' if there == '1' else 'are'} {there}."


def _sentence(
    word: Word,
    group: str,
    picks: Iterable[str],
    baseline_alone: bool,
    found: Score,
    baseline: Score,
    gain: Gain | None,
) -> str:
    if gain is None:
        return "Nothing can be told yet."
    names = list(picks)
    what = names[0] if len(names) == 1 else f"what was chosen ({', '.join(names)})"
    article = "an" if group[0] in "aeiou" else "a"
    read = f"in {article} {group} that training never saw, "
    if baseline_alone:
        read += f"ERM, which was chosen, reads the labels with a macro-F1 of {baseline.mean:.2f}"
    else:
        read += (
            f"{what} reads the labels with a macro-F1 of {found.mean:.2f}, "
            f"ERM with {baseline.mean:.2f}"
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
        without = f" Left out were methods of which runs failed or are not done: {listed(lacking)}."
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
