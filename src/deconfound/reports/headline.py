"""What a report says first: the verdicts, or what scores alone can and cannot tell."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from deconfound.display.numbers import counted, mean_and_sd, signed
from deconfound.experiments.verdict import FEWEST_FOLDS, FEWEST_SEEDS, Difference
from deconfound.reports.leaderboard import Leaderboard, of_scores, of_verdict
from deconfound.reports.verdict import FoundVerdict, Interval

NOT_CHOSEN = (
    "No method was chosen without looking at these scores, so the best of several is flattered: "
    "“deconfound compare SOURCE --hold-out LEVEL” chooses by training groups alone and gives a "
    "verdict."
)


@dataclass(frozen=True)
class Headline:
    """One answer at the head of the page."""

    state: Literal["helps", "harms", "no difference", "cannot be told"]
    sentence: str
    number: str
    """The number that carries the sentence; empty where there is none."""
    about: str
    """What the number is, its interval, p value, groups and seeds."""
    interval: tuple[float, float, float] | None
    """Mean, low and high, for the picture of the interval."""
    why: str
    chosen_by: str
    board: Leaderboard


def headlines(verdicts: list[FoundVerdict], scores: pd.DataFrame) -> list[Headline]:
    """One headline for each verdict; without any, one for each level that was held out.

    `scores` comes from `with_levels`.
    """
    if verdicts:
        return [_of_verdict(found) for found in verdicts]
    return [_of_scores(board, differences) for board, differences in of_scores(scores)]


def _of_verdict(found: FoundVerdict) -> Headline:
    verdict = found.verdict
    difference = verdict.difference
    level = " / ".join(name.removeprefix("Metadata_") for name in verdict.hold_out)
    what = f"macro-F1 on held-out {level}, what was chosen − {verdict.baseline}"
    return Headline(
        verdict.verdict,
        verdict.sentence,
        "" if difference is None or difference.mean is None else signed(difference.mean),
        "" if difference is None else f"{what}{_aside(difference)}",
        None if difference is None else _ends(difference),
        verdict.why,
        verdict.chosen_by,
        of_verdict(verdict),
    )


def _of_scores(board: Leaderboard, differences: list[Difference]) -> Headline:
    level = board.title[0].lower() + board.title[1:]
    if not differences:
        return _alone(board, level)
    known = [one for one in differences if not math.isnan(one.low)]
    most = max(known or differences, key=lambda one: one.mean)
    interval = Interval(
        mean=most.mean,
        low=most.low if known else None,
        high=most.high if known else None,
        p=None,
        groups=most.folds,
        seeds=most.seeds,
    )
    what = f"macro-F1 on {level}: {most.method} − {most.baseline}{_aside(interval)}"
    state: Literal["helps", "harms", "no difference", "cannot be told"] = "cannot be told"
    if not known:
        sentence = f"Whether a method beats {most.baseline} on {level} cannot be told yet."
        why = (
            f"An interval takes {FEWEST_FOLDS} held-out groups and {FEWEST_SEEDS} seeds; there "
            f"{'is' if most.folds == 1 else 'are'} {counted(most.folds, 'group')} and "
            f"{counted(most.seeds, 'seed')}."
        )
    elif most.low > 0:
        state, why = "helps", ""
        sentence = f"{most.method} scores above {most.baseline} on {level}."
    elif max(one.high for one in known) < 0:
        state, why = "harms", ""
        sentence = f"Every method scores below {most.baseline} on {level}."
    else:
        state = "no difference"
        sentence = f"No method is told apart from {most.baseline} on {level}."
        why = "The interval of the largest difference holds 0."
    return Headline(
        state, sentence, signed(most.mean), what, _ends(interval), why, NOT_CHOSEN, board
    )


def _alone(board: Leaderboard, level: str) -> Headline:
    """No pair of methods: one method, or no baseline."""
    best = board.rows[0]
    names = ", ".join(row.method for row in board.rows)
    why = (
        f"Only {names} was scored, and nothing stands beside it."
        if len(board.rows) == 1
        else f"There is no erm among {names} to compare with."
    )
    cell = best.cells[0]
    return Headline(
        "cannot be told",
        f"Whether invariance helps on {level} cannot be told: there is nothing to compare.",
        "" if cell.value is None else mean_and_sd(cell.value, math.nan),
        f"macro-F1 of {best.method} on {level}" + (f", chance {cell.aside}" if cell.aside else ""),
        None,
        why,
        "",
        board,
    )


def _aside(difference: Interval) -> str:
    said = ""
    if difference.low is not None and difference.high is not None:
        said += f", 95 % interval {signed(difference.low)} … {signed(difference.high)}"
    said += "" if difference.p is None else f", p = {difference.p:.2g}"
    counts = [
        counted(count, noun)
        for count, noun in ((difference.groups, "group"), (difference.seeds, "seed"))
        if count
    ]
    return said + (f", over {' and '.join(counts)}" if counts else "")


def _ends(difference: Interval) -> tuple[float, float, float] | None:
    if difference.mean is None or difference.low is None or difference.high is None:
        return None
    return difference.mean, difference.low, difference.high
