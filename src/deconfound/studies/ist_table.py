"""The table of a cross-validation, with the columns of Pernice et al., IST, Table 1."""

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deconfound.experiments.table import write_readable
from deconfound.files import atomic

IID_F1, LISI, BATCH_CV = "IID", "cLISI/bLISI", "kNN BatchCV"
FEW = 2
"""Values that a standard deviation needs."""


class Cell(NamedTuple):
    """What a column of the table holds of one method, over folds and seeds."""

    mean: float
    sd: float
    """Sample sd; NaN of a single run."""
    runs: int
    chance: float
    """Mean macro-F1 of the same predictions dealt out at random; NaN of other metrics."""


def make_table(
    scores: pd.DataFrame, names: list[str], folds: dict[str, list[str]], blocks: dict[str, str]
) -> pd.DataFrame:
    """One row for each of `names`; the columns NAME_mean, NAME_sd, NAME_runs, NAME_chance.

    `scores` has the columns of a scores file; `folds` holds the folds of each level, innermost
    first; `blocks` the representation whose mixing counts, by name. Means and sds are over all
    folds of a level and all seeds. NaN where there is no run.
    """
    rows = []
    for name in names:
        own = scores[(scores["method"] == name) & (scores["part"] == "test")]
        in_distribution = own[own["fold"] == "iid"]
        mixing = in_distribution[in_distribution["representation"] == blocks.get(name)]
        cells = {
            IID_F1: _f1(in_distribution),
            LISI: _cell(mixing[mixing["metric"] == "lisi_ratio"]["value"]),
            BATCH_CV: _cell(mixing[mixing["metric"] == "knn_batch_cv"]["value"]),
        }
        for level, of_level in folds.items():
            cells[level] = _f1(own[own["fold"].isin(of_level)])
        flat = {f"{c}_{what}": value for c, cell in cells.items() for what, value in _named(cell)}
        rows.append({"method": name} | flat)
    return pd.DataFrame(rows)


def write_crossval(table: pd.DataFrame, levels: dict[str, str], out: Path) -> None:
    """Write table.csv, with everything, and table.md and table.tex, for readers."""
    atomic.write_text(out / "table.csv", table.to_csv(index=False))
    write_readable(shown(table, levels), out, left=1)


def shown(table: pd.DataFrame, levels: dict[str, str]) -> pd.DataFrame:
    """The table as text; `levels` holds the title of each level, innermost first."""
    titles = {IID_F1: IID_F1, LISI: LISI, BATCH_CV: BATCH_CV} | levels
    rows = []
    for row in table.to_dict("records"):
        cells = {title: _text(row[f"{c}_mean"], row[f"{c}_sd"]) for c, title in titles.items()}
        rows.append({"method": str(row["method"])} | cells)
    return pd.DataFrame(rows, columns=["method", *titles.values()])


def _f1(scores: pd.DataFrame) -> Cell:
    predicted = scores[scores["representation"] == "prediction"]
    chance = predicted[predicted["metric"] == "macro_f1_chance"]["value"].mean()
    found = _cell(predicted[predicted["metric"] == "macro_f1"]["value"])
    return found._replace(chance=float(chance))


def _cell(values: pd.Series) -> Cell:
    known = values.dropna()
    sd = float(known.std(ddof=1)) if len(known) >= FEW else math.nan
    return Cell(float(known.mean()) if len(known) else math.nan, sd, len(known), math.nan)


def _named(cell: Cell) -> list[tuple[str, float]]:
    return list(zip(Cell._fields, cell, strict=True))


def _text(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
