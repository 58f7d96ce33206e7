"""A dozen lines that stand for a file of scores on a terminal."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from deconfound.display.numbers import number
from deconfound.reports.tables import main_representation

Line = TypeVar("Line")
MOST = 12
"""Lines, with that of the file itself, which the verb adds."""
ALARMS = ("collapsed", "not converged")
"""Words of the notes that are shown whatever score they are of."""
CAPTION = (
    "macro-F1 (chance) of the label, as the method predicts it, else by a probe; leakage: of the "
    "environment, by a probe"
)


@dataclass(frozen=True)
class _Column:
    """A column: the first score that there is, by metric, then by part."""

    title: str
    metrics: tuple[str, ...]
    parts: tuple[str, ...] = ()
    """Any if empty."""
    chance: str = "{}_chance"
    """Name of the metric that is shown in brackets; {} stands for that of the column."""


_LABEL = ("macro_f1", "probe_label_macro_f1")
_INSIDE = ("id_test", "val")
_COLUMNS = (
    _Column("held out", _LABEL, ("test",)),
    _Column("in distribution", _LABEL, _INSIDE),
    _Column("another screen", _LABEL, ("new",)),
    _Column("leakage", ("probe_environment_macro_f1",)),
    _Column("relations: area", ("corum_curve_area",)),
    _Column("precision (chance)", ("corum_average_precision",), chance="corum_prevalence"),
    _Column("activity: mAP", ("retrieval_activity_map",)),
    _Column("across batches: mAP", ("retrieval_cross_batch_map",)),
    _Column("consistency: mAP", ("retrieval_consistency_map",)),
    _Column("error, held out", ("imputation_error",), ("test",)),
    _Column("error, in distribution", ("imputation_error",), ("id_test",)),
    _Column("hallucinated, held out", ("imputation_hallucination",), ("test",)),
    _Column("source environment (chance)", ("imputation_source_environment",)),
    _Column("source level (chance)", ("imputation_source_level",)),
)
_IID = (_Column("in distribution", _LABEL, ("test",)), *_COLUMNS[2:])


@dataclass(frozen=True)
class ScoreLines:
    """What is shown of a table of scores."""

    caption: str
    """Empty where the columns say it all."""
    columns: list[str]
    rows: list[list[str]]
    """One for each method and fold; means where a method has several seeds there."""
    below: list[str]
    """How many rows are left out, and notes, each once: the alarms of all scores, then those of the
    scores shown."""


def score_lines(scores: pd.DataFrame) -> ScoreLines:
    """What to show of `scores`, in the columns of a scores file; at most 11 lines."""
    found: list[tuple[list[str], dict[str, str]]] = []
    notes = [note for note in _each(scores["note"]) if any(word in note for word in ALARMS)]
    keys = [scores["method"], scores["fold"], scores["config"].map(_without_seed)]
    for (method, fold, _), own in scores.groupby(keys, sort=False, dropna=False):
        cells = {}
        for column in _IID if fold == "iid" else _COLUMNS:
            chosen = _chosen(own, column)
            if len(chosen):
                cells[column.title] = _cell(own, chosen, column)
                notes += _each(chosen["note"])
        seeds = own["seed"].nunique()
        found.append(([str(method), str(fold), str(seeds)], cells))
    titles = [one.title for one in _COLUMNS if any(one.title in cells for _, cells in found)]
    rows = [[*left, *(cells.get(title, "–") for title in titles)] for left, cells in found]
    columns = ["method", "fold", "seeds", *titles]
    if all(row[2] == "1" for row in rows):
        columns, rows = [*columns[:2], *columns[3:]], [[*row[:2], *row[3:]] for row in rows]
    caption = CAPTION if "leakage" in titles else ""
    notes = list(dict.fromkeys(notes))
    room = MOST - 2 - bool(caption)
    if len(rows) > room - min(len(notes), 3):  # what sums folds up comes first
        rows.sort(key=lambda row: "(pooled over" not in row[1])
    shown, below = _cut(rows, room - min(len(notes), 3), "methods and folds")
    told, more = _cut([f"note: {note}" for note in notes], room - len(shown) - len(below), "notes")
    return ScoreLines(caption, columns, shown, [*below, *told, *more])


def _cut(lines: list[Line], most: int, what: str) -> tuple[list[Line], list[str]]:
    """The lines, or the first of them and a line that says how many more there are: `most`."""
    if len(lines) <= most:
        return lines, []
    return lines[: most - 1], [f"and {len(lines) - most + 1} more {what}"]


def _chosen(own: pd.DataFrame, column: _Column) -> pd.DataFrame:
    """The scores of the main representation, of the first metric and part that are there."""
    for metric in column.metrics:
        scored = own[own["metric"] == metric]
        for part in column.parts or scored["part"].unique():
            rows = scored[scored["part"] == part]
            if len(rows):
                return rows[rows["representation"] == main_representation(rows)]
    return own[:0]


def _cell(own: pd.DataFrame, chosen: pd.DataFrame, column: _Column) -> str:
    """The mean of the scores, and in brackets that of chance, where it is known."""
    first = chosen.iloc[0]
    same = own[(own["part"] == first["part"])
               & (own["representation"] == first["representation"])]  # fmt: skip
    chance = same.loc[same["metric"] == column.chance.format(first["metric"]), "value"].mean()
    value = number(float(chosen["value"].mean()), 3)
    return value if math.isnan(chance) else f"{value} ({number(float(chance), 3)})"


def _each(notes: "pd.Series[str]") -> Iterator[str]:
    """The clauses of notes, which scores join by semicolons."""
    for note in notes.dropna().unique():
        yield from (part for part in str(note).split("; ") if part)


def _without_seed(config: object) -> str:
    """What two runs must share to be two seeds of one setting."""
    if not isinstance(config, str):
        return ""
    return json.dumps(json.loads(config) | {"seed": None}, sort_keys=True)
