"""Tables of scores in a report: one for each level and kind, mean ± sd over folds and seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from deconfound.data.tables.table import natural_order
from deconfound.display.numbers import mean_and_sd, number
from deconfound.evaluation.scores import EXACT
from deconfound.metrics.score import Metric, all_metrics

PARTS = {
    "test": "held out",
    "id_test": "in distribution",
    "id": "in distribution",
    "val": "validation",
    "train": "training",
    "ood_val": "left-out environment",
    "pooled": "held out, folds pooled",
}
MAIN = ("prediction", "content", "representation", "image")
KINDS = ("Imputed images", "Predictions", "Linear probes", "Neighbourhoods", "Other scores")
"""Titles of the tables of a level."""
_POOLED = r"^(.+) \(pooled over \d+ folds\)$"
_LEADING = (
    "macro_f1",
    "accuracy",
    "class_coverage",
    "macro_f1_seen_nearby",
    "macro_f1_unseen_nearby",
)
_CHANCE = "_chance"
IMPUTATION = "imputation_"
"""Beginning of the names of the metrics of imputed images."""
_IMPUTED = tuple(
    IMPUTATION + name
    for name in (
        "error",
        "squared_error",
        "label_probability",
        "agreement",
        "hallucination",
        "source_environment",
        "source_level",
    )
)
_REFERENCE = (_CHANCE, "_low", "_high", "_true")
"""Endings of metrics that are shown in brackets after another one: its chance level, the ends of
its interval, or its value on true images."""


@dataclass(frozen=True)
class Spread:
    """A score over folds and seeds."""

    mean: float
    """NaN where no value is defined."""
    sd: float
    """Sample standard deviation (ddof 1) over all folds and seeds; NaN for a single value."""
    values: int
    folds: int
    seeds: int
    detail: str
    """One line for each value, with fold, seed, n and note."""

    def text(self, digits: int) -> str:
        """Mean ± sd as `mean_and_sd` writes them."""
        return mean_and_sd(self.mean, self.sd, digits)


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    part: str
    metric: str
    arrow: str
    """↑ or ↓ where higher or lower is better."""
    summary: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    aside: str
    """In brackets: chance level, interval or value on true images; empty where none is known."""
    detail: str
    best: bool


@dataclass(frozen=True)
class MethodRow:
    """The row of one method and one of its representations."""

    method: str
    representation: str
    cells: list[Cell]
    over: str
    """Number of folds and seeds."""


@dataclass(frozen=True)
class Table:
    """Scores of one kind at one level."""

    title: str
    columns: list[Column]
    rows: list[MethodRow]

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Headers over neighbouring columns of one part, each with the number of columns."""
        grouped = groupby(self.columns, key=lambda column: column.part)
        return [(part, len(list(columns))) for part, columns in grouped]


@dataclass(frozen=True)
class Level:
    """The scores of all folds of one level."""

    title: str
    folds: list[str]
    tables: list[Table]


def with_levels(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the column `level` of each fold; a pooled score becomes part "pooled"."""
    pooled = scores["fold"].astype(str).str.extract(_POOLED, expand=False)
    level = pooled.fillna(scores["fold"].astype(str).str.split("=").str[0])
    return scores.assign(level=level, part=scores["part"].where(pooled.isna(), "pooled"))


def level_title(level: str) -> str:
    """What is held out, in words."""
    if level == "iid":
        return "Random split"
    return "Given split" if level == "given" else f"Held-out {level.removeprefix('Metadata_')}"


def part_title(level: str, part: str) -> str:
    """What the rows of a part are, in words."""
    if level == "iid" and part == "test":
        return "in distribution"
    return PARTS.get(part, part)


def spread(rows: pd.DataFrame) -> Spread:
    """Mean and sd of the defined values among the rows of one score."""
    defined = rows[rows["value"].notna()]
    values = defined["value"].to_numpy(dtype=float)
    lines = []
    for row in rows.sort_values(["fold", "seed"]).to_dict("records"):
        value = "undefined" if math.isnan(row["value"]) else number(row["value"], 4)
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"{row['fold']}, seed {row['seed']}: {value}, n = {row['n']:,}{note}")
    return Spread(
        float(values.mean()) if len(values) else math.nan,
        float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        len(values),
        defined["fold"].nunique(),
        defined["seed"].nunique(),
        "\n".join(lines),
    )


def levels(scores: pd.DataFrame) -> list[Level]:
    """Tables of all scores, level by level; `scores` comes from `with_levels`."""
    known = all_metrics()
    found = []
    for level in sorted(scores["level"].unique(), key=natural_order):
        inside = scores[scores["level"] == level]
        folds = inside.loc[inside["part"] != "pooled", "fold"].unique()
        kinds = inside["metric"].map(_kind)
        tables = [
            _table(kind, inside[kinds == kind], level, known)
            for kind in KINDS
            if (kinds == kind).any()
        ]
        found.append(Level(level_title(level), sorted(folds, key=natural_order), tables))
    return found


def main_representation(rows: pd.DataFrame) -> str:
    """The representation a method is judged by: its prediction, content or representation."""
    found = set(rows["representation"])
    return next((name for name in MAIN if name in found), min(found))


def over(spreads: Iterable[Spread]) -> str:
    """ "2 folds and 3 seeds", with ranges where they differ; a single one is not counted."""
    spreads = list(spreads)
    words = []
    for noun in ("fold", "seed"):
        counts = [getattr(one, f"{noun}s") for one in spreads]
        low, high = min(counts), max(counts)
        if high > 1:
            words.append(f"{low if low == high else f'{low}–{high}'} {noun}s")
    return " and ".join(words)


def _kind(metric: str) -> str:
    if metric.removesuffix(_CHANCE) in _LEADING:
        return "Predictions"
    if metric.startswith("probe_"):
        return "Linear probes"
    if metric.startswith(IMPUTATION):
        return "Imputed images"
    if "lisi" in metric or metric.startswith("knn_"):
        return "Neighbourhoods"
    return "Other scores"


def _table(title: str, rows: pd.DataFrame, level: str, known: dict[str, Metric]) -> Table:
    scored = rows[~rows["metric"].str.endswith(_REFERENCE)]
    if (scored["part"] == "id_test").any():
        scored = scored[scored["part"] != "val"]
    pairs = sorted(set(zip(scored["part"], scored["metric"], strict=True)), key=_column_order)
    keys = sorted(set(zip(rows["method"], rows["representation"], strict=True)))
    mains = {method: main_representation(rows[rows["method"] == method]) for method, _ in keys}
    ranked = sorted(mains.keys() - {EXACT})
    spreads = {
        key: spread(of_score)
        for key, of_score in rows.groupby(["method", "representation", "part", "metric"])
    }
    best = {
        pair: _best([spreads.get((m, mains[m], *pair)) for m in ranked], known.get(pair[1]))
        for pair in pairs
    }
    shown = []
    for method, representation in keys:
        cells = []
        for pair in pairs:
            one = spreads.get((method, representation, *pair))
            if one is None:
                cells.append(Cell("", "", "", False))
                continue
            leads = method in ranked and representation == mains[method] and one.mean == best[pair]
            ends = {end: (method, representation, pair[0], pair[1] + end) for end in _REFERENCE}
            aside = _aside({end: spreads[key] for end, key in ends.items() if key in spreads})
            context = pair[1] in known and known[pair[1]].better == "context"
            text = number(one.mean, 3) if context else one.text(3)
            cells.append(Cell(text, aside, one.detail, leads))
        of_row = [spreads[key] for key in spreads if key[:2] == (method, representation)]
        counts = f"{max(one.folds for one in of_row)} × {max(one.seeds for one in of_row)}"
        shown.append(MethodRow(method, representation, cells, counts))
    columns = []
    for part, metric in pairs:
        declared = known.get(metric)
        arrow = {"higher": "↑", "lower": "↓"}.get(declared.better, "") if declared else ""
        summary = f"{declared.summary} ({declared.paper})" if declared else ""
        columns.append(Column(part_title(level, part), metric, arrow, summary))
    return Table(title, columns, shown)


def _column_order(pair: tuple[str, str]) -> tuple[int, int, str, str]:
    part, metric = pair
    parts, leading = list(PARTS), [*_LEADING, *_IMPUTED]
    return (
        parts.index(part) if part in parts else len(parts),
        leading.index(metric) if metric in leading else len(leading),
        part,
        metric,
    )


def _best(spreads: list[Spread | None], metric: Metric | None) -> float:
    """The best mean among methods, NaN where there is nothing to choose."""
    means = [one.mean for one in spreads if one is not None and not math.isnan(one.mean)]
    if metric is None or metric.better == "context" or len(means) < 2:
        return math.nan
    return float(np.max(means) if metric.better == "higher" else np.min(means))


def _aside(references: dict[str, Spread]) -> str:
    """What stands in brackets; an interval only where the score is a single value."""
    if {"_low", "_high"} <= references.keys():
        low, high = references["_low"], references["_high"]
        return f"{number(low.mean, 2)} to {number(high.mean, 2)}" if low.values == 1 else ""
    return number(next(iter(references.values())).mean, 2) if references else ""
