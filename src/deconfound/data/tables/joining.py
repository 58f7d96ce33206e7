"""Columns of another table joined to the rows of a table, none multiplied and none lost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import columns_of, joined, read_table, require_columns
from deconfound.errors import UserError


def joined_table(table: pd.DataFrame, given: str, where: str) -> tuple[pd.DataFrame, Path]:
    """`table` with the columns of the file that `given` names, and that file.

    `given` is FILE or FILE=COLUMN,COLUMN. Rows are joined by those columns, or by all that both
    have. Raises UserError as `joined_rows` does, and if the tables share no column.
    """
    file, columns = Path(given), list[str]()
    if "=" in given and not file.is_file():
        path, _, named = given.rpartition("=")
        file, columns = Path(path), [name.strip() for name in named.split(",") if name.strip()]
        if not columns:
            raise UserError(f"--join {given}: expected FILE or FILE=COLUMN,COLUMN; name a column")
    other = read_table(file)
    if not columns:
        columns = [str(name) for name in table.columns if name in other.columns]
        if not columns:
            raise UserError(
                f"{file}: shares no column with {where}, so rows cannot be joined; {where} has "
                f"{columns_of(table).removeprefix('it has ')}, {file} has "
                f"{columns_of(other).removeprefix('it has ')}: rename the column of the key in one "
                "of them"
            )
    return joined_rows(table, other, columns, where, str(file), "--join"), file


def joined_rows(
    table: pd.DataFrame,
    other: pd.DataFrame,
    by: Sequence[str],
    where: str,
    of_other: str,
    option: str,
) -> pd.DataFrame:
    """`table`, in its order, with the columns of the row of `other` that has the same keys `by`.

    Keys are compared as `keys` writes them, so that well A1 is A01. Messages call the tables
    `where` and `of_other`. Raises UserError for a column that lacks; for a row of `table` whose
    key is missing, or has no row in `other`; for one that has several different ones; and for a
    column of both, not in `by`, that differs.
    """
    require_columns(table, by, where)
    require_columns(other, by, of_other)
    known = joined(other, by)
    filled = known.notna().to_numpy()
    whole = other[filled].apply(lambda column: column.astype("string"))
    kept = other[filled][~whole.assign(**{"": known[filled]}).duplicated().to_numpy()]
    known = known[kept.index]
    wanted = joined(table, by)
    named = " and ".join(repr(name) for name in by)
    twice = known[known.duplicated(keep=False) & known.isin(wanted.dropna().unique())]
    if len(twice):
        first, second = twice.index[twice == twice.iloc[0]][:2]
        rows = int((wanted == twice.iloc[0]).sum())
        raise UserError(
            f"{of_other}: rows {first} and {second} (from 0) both have {named} "
            f"{twice.iloc[0]!r}, so joining would multiply {rows:,} rows of {where}; expected one "
            f"row for each: drop the others, or name more columns, {option} FILE=COLUMN,COLUMN"
        )
    place = pd.Index(known).get_indexer(pd.Index(wanted))
    place = np.where(wanted.isna(), -1, place)
    alone = np.flatnonzero(place < 0)
    if len(alone):
        row, missing = int(alone[0]), bool(wanted.isna().iloc[alone[0]])
        said = f"{named} {wanted.iloc[row]!r} has no row in {of_other}"
        raise UserError(
            f"{where}: row {row} (from 0): {f'{named} is empty' if missing else said}; joining "
            f"would lose {len(alone):,} of {len(table):,} rows: complete {of_other}, drop these "
            "rows, or name other columns to join by"
        )
    found = kept.iloc[place].set_axis(table.index)
    both = [name for name in found.columns if name in table.columns and name not in by]
    for name in both:
        own, theirs = keys(table[name]), keys(found[name])
        differs = np.flatnonzero((own != theirs).fillna(False).to_numpy(dtype=bool))
        if len(differs):
            row = int(differs[0])
            raise UserError(
                f"{of_other}: column {name!r} is {theirs.iloc[row]!r} where row {row} (from 0) of "
                f"{where} has {own.iloc[row]!r}; rename the column in one of them, or join by it "
                "too"
            )
    return pd.concat([table, found.drop(columns=[*by, *both])], axis=1)
