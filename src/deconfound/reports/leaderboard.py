"""The leaderboard at the head of a report: what each method reads where, and what is noise."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from deconfound.data.tables.table import natural_order
from deconfound.display.numbers import mean_and_sd, number, signed
from deconfound.experiments.verdict import Difference, paired_differences
from deconfound.reports.summary import PROBED, of_first
from deconfound.reports.tables import level_title, main_representation, part_title, spread
from deconfound.reports.verdict import Interval, Summed, Verdict

BASELINE = "erm"
BIOLOGY = ("knn_batch_cv", "retrieval_cross_batch_map", "retrieval_consistency_map", "clisi")
"""Metrics of what is kept of the label across environments; the first that was scored is shown."""
SAW = "saw held-out images"


class Value(NamedTuple):
    """A score over folds and seeds; NaN where unknown."""

    mean: float
    sd: float
    n: int
    chance: float
    detail: str


class Column(NamedTuple):
    """A column of the leaderboard."""

    title: str
    arrow: str
    summary: str


@dataclass(frozen=True)
class Cell:
    """One score of one method."""

    text: str
    aside: str
    """The chance level; empty where none is known."""
    detail: str
    value: float | None
    chance: float | None
    best: bool
    noise: bool
    """Whether it is within one sd of the best."""


@dataclass(frozen=True)
class Gap:
    """The difference of a method from the baseline, held out."""

    text: str
    detail: str
    value: float | None
    state: Literal["above", "below", "noise", "unknown", ""]


@dataclass(frozen=True)
class Row:
    """One method."""

    method: str
    badges: list[str]
    cells: list[Cell]
    gap: Gap


@dataclass(frozen=True)
class Leaderboard:
    """Methods × scores."""

    title: str
    baseline: str
    """Empty where no method is one."""
    columns: list[Column]
    rows: list[Row]
    """The best held out first."""


_COLUMNS = (
    Column("held out", "↑", "macro-F1 on groups that training never saw"),
    Column("in distribution", "↑", "macro-F1 on other rows of the training groups"),
)


def of_verdict(verdict: Verdict) -> Leaderboard:
    """The leaderboard of what verdict.json holds."""
    values = {
        name: [
            _value(one.held_out),
            _value(one.in_distribution),
            _value(one.environment_readable),
            _value(one.biology_kept),
        ]
        for name, one in verdict.methods.items()
    }
    columns = [
        *_COLUMNS,
        Column("environment readable", "↓", "macro-F1 of a linear probe of the environment"),
        Column("biology kept", "↑", "macro-F1 of a linear probe of the label on held-out rows"),
    ]
    badges = {
        name: [
            *["recommended"] * (name == verdict.recommended),
            *["baseline"] * (name == verdict.baseline),
            *[SAW] * one.saw_held_out,
        ]
        for name, one in verdict.methods.items()
    }
    gaps = {name: _gap(one.difference) for name, one in verdict.methods.items()}
    level = " / ".join(name.removeprefix("Metadata_") for name in verdict.hold_out)
    return _board(f"Held-out {level}", verdict.baseline, columns, values, badges, gaps)


def of_scores(scores: pd.DataFrame) -> list[tuple[Leaderboard, list[Difference]]]:
    """A leaderboard for each level with scores on held-out rows, and the paired differences.

    `scores` comes from `with_levels`. The environment is read by a linear probe, in macro-F1.
    """
    found = []
    predicted = scores[scores["representation"] == "prediction"]
    predicted = predicted[predicted["metric"] == "macro_f1"]
    held_out = predicted[(predicted["part"] == "test") & (predicted["level"] != "iid")]
    for level in sorted(held_out["level"].unique(), key=natural_order):
        inside = scores[scores["level"] == level]
        names = sorted(held_out.loc[held_out["level"] == level, "method"].unique())
        biology = next((name for name in BIOLOGY if (inside["metric"] == name).any()), "")
        inner, _ = of_first(("id_test", "val"), predicted[predicted["level"] == level])
        probe = "probe_environment_macro_f1"
        probed, _ = of_first(PROBED, inside[inside["metric"] == probe])
        kept, _ = of_first(("test", *PROBED), inside[inside["metric"] == biology])
        values = {}
        for name in names:
            own = inside[inside["method"] == name]
            values[name] = [
                _scored(own, "macro_f1", "test", "prediction"),
                _scored(own, "macro_f1", inner, "prediction"),
                _scored(own, probe, probed, None),
                _scored(own, biology, kept, None),
            ]
        read = f", {part_title(level, probed)}" if probed else ""
        columns = [
            *_COLUMNS,
            Column("environment readable", "↓", f"macro-F1 of a linear probe{read}"),
            Column("biology kept", "↑", biology.replace("_", " ")),
        ]
        baseline = BASELINE if BASELINE in names else ""
        folds = inside.loc[inside["part"] == "test", "fold"].unique().tolist()
        differences = paired_differences(inside, BASELINE, folds)
        gaps = {one.method: _gap(_interval(one)) for one in differences}
        told = inside[inside["note"].str.contains("images of test rows", regex=False)]
        badges = {
            name: [
                *["baseline"] * (name == baseline),
                *[SAW] * bool((told["method"] == name).any()),
            ]
            for name in names
        }
        board = _board(level_title(level), baseline, columns, values, badges, gaps)
        found.append((board, differences))
    return found


def _value(summed: Summed | None) -> Value | None:
    if summed is None or summed.mean is None:
        return None
    n = summed.n or 0
    aside = f"{n} value" + "s" * (n != 1)
    return Value(summed.mean, _known(summed.sd), n, _known(summed.chance), aside)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _scored(
    rows: pd.DataFrame, metric: str, part: str | None, representation: str | None
) -> Value | None:
    if rows.empty:
        return None
    of_block = rows["representation"] == (representation or main_representation(_blocks(rows)))
    of_part = rows[of_block & (rows["part"] == part)]
    one = spread(of_part[of_part["metric"] == metric])
    if math.isnan(one.mean):
        return None
    chance = spread(of_part[of_part["metric"] == f"{metric}_chance"]).mean
    return Value(one.mean, one.sd, one.values, chance, one.detail)


def _blocks(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of embeddings alone, where there are any."""
    blocks = rows[rows["representation"] != "prediction"]
    return rows if blocks.empty else blocks


def _interval(one: Difference) -> Interval:
    low, high = (None if math.isnan(end) else end for end in (one.low, one.high))
    return Interval(mean=one.mean, low=low, high=high, p=None, groups=one.folds, seeds=one.seeds)


def _gap(difference: Interval | None) -> Gap:
    if difference is None or difference.mean is None:
        return Gap("", "", None, "")
    noise = difference.noise
    text = signed(difference.mean)
    if noise is None or difference.low is None or difference.high is None:
        return Gap(text, "no interval: too few groups or seeds", difference.mean, "unknown")
    detail = f"95 % {signed(difference.low)} … {signed(difference.high)}"
    detail += "" if difference.p is None else f", p = {difference.p:.2g}"
    state: Literal["above", "below", "noise"] = "above" if difference.mean > 0 else "below"
    return Gap(text, detail, difference.mean, "noise" if noise else state)


def _board(
    title: str,
    baseline: str,
    columns: list[Column],
    values: dict[str, list[Value | None]],
    badges: dict[str, list[str]],
    gaps: dict[str, Gap],
) -> Leaderboard:
    shown = [c for c in range(len(columns)) if any(of[c] is not None for of in values.values())]
    best = {c: _best([of[c] for of in values.values()], columns[c].arrow) for c in shown}
    order = sorted(
        values,
        key=lambda name: (-one.mean if (one := values[name][0]) else math.inf, natural_order(name)),
    )
    rows = [
        Row(
            name,
            badges[name],
            [_cell(values[name][c], best[c]) for c in shown],
            gaps.get(name, Gap("", "", None, "")),
        )
        for name in order
    ]
    return Leaderboard(title, baseline, [columns[c] for c in shown], rows)


def _best(values: list[Value | None], arrow: str) -> Value | None:
    known = [one for one in values if one is not None]
    if len(known) < 2:
        return None
    return (max if arrow == "↑" else min)(known, key=lambda one: one.mean)


def _cell(one: Value | None, best: Value | None) -> Cell:
    if one is None:
        return Cell("–", "", "", None, None, False, False)
    leads = best is not None and one.mean == best.mean
    sds = [] if best is None else [sd for sd in (one.sd, best.sd) if not math.isnan(sd)]
    near = best is not None and bool(sds) and abs(one.mean - best.mean) <= max(sds)
    unknown = math.isnan(one.chance)
    return Cell(
        mean_and_sd(one.mean, one.sd),
        "" if unknown else number(one.chance, 2),
        one.detail,
        one.mean,
        None if unknown else one.chance,
        leads,
        near and not leads,
    )
