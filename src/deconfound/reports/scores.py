"""Scores files as a report reads them."""

from pathlib import Path

import pandas as pd

from deconfound.data.tables.table import require_columns
from deconfound.errors import UserError

SCORE_COLUMNS = ("method", "fold", "seed", "representation", "metric", "part", "value", "n", "note")
SCORE_KEY = ["method", "fold", "seed", "representation", "metric", "part"]


def read_scores(path: Path) -> pd.DataFrame:
    """The scores of one file, with the column `file`; raises UserError if it cannot be read."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as scores ({reason}); measure again") from error
    require_columns(table, SCORE_COLUMNS, str(path))
    kept = [*SCORE_COLUMNS, *(["config"] if "config" in table.columns else [])]
    table = table[kept].copy()
    for column in ("method", "fold", "representation", "metric", "part", "note"):
        table[column] = table[column].astype("string").fillna("").astype(object)
    table["value"] = table["value"].astype(float)
    return table.assign(file=str(path))


def joined_scores(scores: list[pd.DataFrame]) -> pd.DataFrame:
    """The scores of several files in one table."""
    if not scores:
        return pd.DataFrame(columns=[*SCORE_COLUMNS, "file"])
    return pd.concat(scores, ignore_index=True)


def without_repeats(scores: pd.DataFrame) -> pd.DataFrame:
    """Each score once; raises UserError where two files give it different values."""
    once = scores.drop_duplicates([*SCORE_KEY, "value"])
    twice = once[once.duplicated(SCORE_KEY, keep=False)]
    if len(twice):
        first = twice.iloc[0]
        both = twice[(twice[SCORE_KEY] == first[SCORE_KEY]).all(axis=1)]
        raise UserError(
            f"{first.metric} of {first.method}, fold {first.fold}, seed {first.seed} is "
            f"{both.value.iloc[0]:.4g} in {both.file.iloc[0]} and {both.value.iloc[1]:.4g} in "
            f"{both.file.iloc[1]}; report one setting of a method, or one file of its scores"
        )
    return once.reset_index(drop=True)
