"""The table of a cross-validation, with the columns of Pernice et al., IST, Table 1."""

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deconfound.errors import UserError
from deconfound.experiments.execute import Done
from deconfound.experiments.held_out import level_titles
from deconfound.experiments.plan import Plan
from deconfound.experiments.running.chain import main_block
from deconfound.experiments.table import mean_and_sd, write_table_files
from deconfound.experiments.verdict import paired_differences
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


def make_table(scores: pd.DataFrame, names: list[str], folds: dict[str, list[str]]) -> pd.DataFrame:
    """One row for each of `names`; the columns NAME_mean, NAME_sd, NAME_runs, NAME_chance.

    `scores` has the columns of a scores file; `folds` holds the folds of each level, innermost
    first. Mixing is that of the content block, of methods that have one. Means and sds are over all
    folds of a level and all seeds. NaN where there is no run.
    """
    rows = []
    for name in names:
        own = scores[(scores["method"] == name) & (scores["part"] == "test")]
        in_distribution = own[own["fold"] == "iid"]
        mixing = _mixing(in_distribution)
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


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write the table of a plan's chains, or methods, over its folds by level.

    Returns the table as text and the differences from the first method on held-out groups. Raises
    UserError if the plan has several screens.
    """
    if len(plan.screens) > 1:
        raise UserError("compare: --view levels shows one screen; name one in the plan")
    (screen,) = plan.screens.values()
    folds = list(dict.fromkeys(setting.fold for setting in plan.settings))
    levels = {level: [f for f in folds if f.startswith(f"{level}=")]
              for level in reversed(screen.roles.levels)}  # fmt: skip
    levels = {level: named for level, named in levels.items() if named}
    names = list(dict.fromkeys(done.scores["method"]))
    table, titles = make_table(done.scores, names, levels), level_titles(screen, list(levels))
    write_crossval(table, titles, out)
    held_out = [fold for named in levels.values() for fold in named]
    told = paired_differences(done.scores, names[0], held_out) if names else []
    return shown(table, titles), [one.text() for one in told]


def write_crossval(table: pd.DataFrame, levels: dict[str, str], out: Path) -> None:
    """Write table.csv, with everything, and table.md and table.tex, for readers."""
    atomic.write_text(out / "table.csv", table.to_csv(index=False))
    write_table_files(shown(table, levels), out, left=1)


def shown(table: pd.DataFrame, levels: dict[str, str]) -> pd.DataFrame:
    """The table as text; `levels` holds the title of each level, innermost first."""
    titles = {IID_F1: IID_F1, LISI: LISI, BATCH_CV: BATCH_CV} | levels
    rows = []
    for row in table.to_dict("records"):
        cells = {
            title: mean_and_sd(row[f"{c}_mean"], row[f"{c}_sd"]) for c, title in titles.items()
        }
        rows.append({"method": str(row["method"])} | cells)
    return pd.DataFrame(rows, columns=["method", *titles.values()])


def _mixing(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of mixing, of the block that follows the label."""
    of_blocks = scores[scores["metric"].isin(["lisi_ratio", "knn_batch_cv"])]
    main = main_block(of_blocks["representation"].unique().tolist())
    return of_blocks[of_blocks["representation"] == main]


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
