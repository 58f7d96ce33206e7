"""The table of a screen: columns, their roles, the codes made from them, and checks of rows."""

import csv
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from deconfound.arrays import Codes
from deconfound.config import did_you_mean
from deconfound.data.tables.compressed import (
    TEXT,
    encoding_of,
    open_text,
    readable,
    refuse_unfit_packing,
    table_kind,
)
from deconfound.data.tables.decoding import decoded
from deconfound.data.tables.keys import holds_wells, key, keys
from deconfound.data.tables.separators import separator_of
from deconfound.errors import UserError
from deconfound.runtime.escaping import from_spreadsheet

EXPORTED_PATH = "deconfound_path"
"""Column of image paths in a table written by export."""
KINDS = (*TEXT, ".parquet")
"""Ends of the names of tables."""
COLUMNS = 24
"""Columns at most that a message lists."""

ROW_NAME = "Metadata_ObsName"
"""Column of the names of rows that are the index of a data frame or of AnnData's obs."""
LEVEL_COLUMNS = (
    "Metadata_Source",
    "Metadata_Series",
    "Metadata_Batch",
    "Metadata_Plate",
    "Metadata_Section",
)
"""The usual names of nested levels, outermost first."""


class Roles(BaseModel, frozen=True, extra="forbid"):
    """Which column plays which part; the defaults of a screen, overridden at run time."""

    label: str | None = None
    """Column of the biological cause to predict."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance."""
    levels: tuple[str, ...] = ()
    """Nested replicate structure, outermost first, e.g. series, plate, section."""
    well: str | None = None
    """Column of the well; a well never straddles a level fold."""
    split: str | None = None
    """Column with a given split (train, val, id_test, test), where a data set has one."""
    identifier: tuple[str, ...] | None = Field(None, exclude_if=lambda given: not given)
    """Columns that tell the rows apart, so that folds do not depend on the order of rows: looked up
    if None; the order of the rows counts where it is empty, as in screens of earlier releases."""

    def columns(self) -> tuple[str, ...]:
        """Every column named, once each, in the order label, environment, levels, well, split."""
        named = [self.label, *self.environment, *self.levels, self.well, self.split]
        return tuple(dict.fromkeys(column for column in named if column is not None))


class Coded(NamedTuple):
    """One column, or several joined, as integer codes."""

    codes: Codes
    """(N,) int64; −1 where a value is missing or not among `names`."""
    names: tuple[str, ...]
    """The value each code stands for, sorted."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV, TXT (also packed: .gz, .bz2, .xz) or Parquet table; text stays text.

    "01" is not 1. What stands between the cells of text is found as `separator_of` does. Raises
    UserError if the file is missing, of another kind, unreadable or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table; give a .csv, .tsv, .txt or .parquet file")
    with readable(path):
        refuse_unfit_packing(path)
        match table_kind(path):
            case ".csv" | ".tsv" | ".txt":
                table = _read_text(path, separator_of(path))
            case ".parquet":
                table = with_index(decoded(pd.read_parquet(path), path), str(path))
            case _:
                raise UserError(f"{path}: not a table; expected .csv, .tsv, .txt or .parquet")
    if table.empty:
        raise UserError(f"{path}: the table has no rows; expected one row per image")
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one of them")
    return table.reset_index(drop=True)


def with_index(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """`table` with the named levels of its index as columns, and an unnamed one of text too.

    Raises UserError, which calls the table `where`, if a column has the name of a level.
    """
    index = table.index
    if index.nlevels == 1 and index.name is None:
        if pd.api.types.is_numeric_dtype(index.dtype):
            return table
        index = index.rename(ROW_NAME)
    names = [name or f"Metadata_Index_{place}" for place, name in enumerate(index.names)]
    twice = [name for name in names if name in table.columns]
    if twice:
        raise UserError(
            f"{where}: {twice[0]!r} is a column and a level of the index; rename one of them"
        )
    levels = index.set_names(names).to_frame(index=False)
    return pd.concat([levels, table.reset_index(drop=True)], axis=1)


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    with open_text(path) as stream:
        header = next(csv.reader(stream, delimiter=separator), [])
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one of them")
    with warnings.catch_warnings():
        # A row longer than the header would otherwise shift or lose a column with a warning only.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(
            path,
            dtype=str,
            sep=separator,
            index_col=False,
            encoding=encoding_of(path),
            keep_default_na=False,
            na_values=[""],
        )
    return from_spreadsheet(table) if EXPORTED_PATH in table.columns else table


def require_columns(table: pd.DataFrame, columns: Iterable[str], where: str) -> None:
    """Raise UserError naming the columns that `table` lacks, the nearest to each, and its own."""
    known = set(table.columns)
    lacking = [no_column(one, table) for one in dict.fromkeys(columns) if one not in known]
    if lacking:
        raise UserError(f"{where}: {together([*lacking, columns_of(table)])}")


def no_column(column: str, table: pd.DataFrame) -> str:
    """What is said of a column that `table` lacks."""
    hint = did_you_mean(column, [str(name) for name in table.columns], "")
    return together(filter(None, (f"there is no column {column!r}", hint)))


def together(said: Iterable[str]) -> str:
    """Parts of a message in one line, a semicolon behind each that is no question."""
    return "; ".join(said).replace("?; ", "? ")


def columns_of(table: pd.DataFrame) -> str:
    """What is said of the columns that `table` has, those of metadata first."""
    names = [str(name) for name in table.columns]
    first = [name for name in names if "Metadata_" in name]
    return f"it has {listed([*first, *(name for name in names if name not in first)], COLUMNS)}"


def joined(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The keys of `columns` joined by "/" (text); missing where any of them is, or there are none.

    A "/" inside one of several values is written "%2F" and a "%" "%25", so that different values
    never join to the same text.
    """
    if not columns:
        return pd.Series(pd.NA, index=table.index, dtype="string")
    return _joined([keys(table[column]) for column in columns])


def joined_as_written(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """As `joined`, of the values as the table writes them and not of their keys."""
    return _joined([table[column].astype("string") for column in columns])


def joined_key(value: str, columns: Sequence[str]) -> str:
    """The key of a value of `columns`, joined by "/": what `joined` gives for the same row."""
    parts = value.split("/") if len(columns) > 1 else [value]
    if len(parts) != len(columns):
        return value
    of_columns = zip(parts, columns, strict=True)
    return "/".join(key(part, well=holds_wells(column)) for part, column in of_columns)


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
    if len(parts) == 1:
        return parts[0]
    text = _escaped(parts[0])
    for part in parts[1:]:
        text = text.str.cat(_escaped(part), sep="/")
    return text.rename(None)


def _escaped(text: pd.Series) -> pd.Series:
    return text.str.replace("%", "%25", regex=False).str.replace("/", "%2F", regex=False)


def nested_ids(table: pd.DataFrame, levels: Sequence[str]) -> pd.DataFrame:
    """Globally unique ids of every level, made by prefixing the parents: "S1/P2/A".

    One text column per level, in the order given (outermost first).
    """
    return pd.DataFrame(
        {level: joined(table, levels[: depth + 1]) for depth, level in enumerate(levels)}
    )


def coded(values: pd.Series, names: Sequence[str] | None = None) -> Coded:
    """Integer codes of a column's keys, numbered in sorted order, or by `names` where given."""
    text = keys(values)
    if names is None:
        names = sorted(
            text.dropna().unique().tolist(), key=lambda name: (natural_order(name), name)
        )
    lookup = {name: code for code, name in enumerate(names)}
    codes = text.map(lookup).fillna(-1)
    return Coded(np.asarray(codes, dtype=np.int64), tuple(names))


def natural_order(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "week2" comes before "week10".

    The codes of labels in finished runs rest on this order; natsort orders "é" and "²" otherwise.
    """
    parts: list[str] = []
    for character in text:
        if parts and parts[-1][-1].isdecimal() == character.isdecimal():
            parts[-1] += character
        else:
            parts.append(character)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def listed(columns: Iterable[object], most: int = 12) -> str:
    """At most `most` of the names, joined by commas, and the number of names left out."""
    names = [str(column) for column in columns]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_empty(table: pd.DataFrame, roles: Roles, where: str) -> None:
    """Raise UserError naming the first rows without a label, an environment or a level."""
    wanted = dict.fromkeys([str(roles.label), *roles.environment, *roles.levels])
    for column in wanted:
        empty = np.flatnonzero(keys(table[column]).isna())
        if len(empty):
            rows = ", ".join(str(row) for row in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise UserError(
                f"{where}: column {column!r} is empty in rows {rows}{more} (from 0); fill it in, "
                "or drop these rows"
            )


def refuse_divided(
    table: pd.DataFrame, inner: Sequence[str], outer: Sequence[str], where: str
) -> None:
    """Raise UserError naming the first group of `inner` whose rows lie in two of `outer`.

    A group is one value of the columns, joined; a row where one of them is missing has no group.
    """
    inside, around = joined(table, inner), joined(table, outer)
    known = np.flatnonzero(inside.notna() & around.notna())
    inside, around = inside.iloc[known], around.iloc[known]
    first = around.groupby(inside, sort=False).transform("first")
    divided = np.flatnonzero(around != first)
    if not len(divided):
        return
    place = int(divided[0])
    start = int(np.flatnonzero(inside == inside.iloc[place])[0])
    raise UserError(
        f"{where}: {_named(inner)} {inside.iloc[place]!r} is of {_named(outer)} "
        f"{around.iloc[start]!r} in row {known[start]} and of {around.iloc[place]!r} in row "
        f"{known[place]} (from 0); expected each within one, correct the table or give them "
        "different names"
    )


def _named(columns: Sequence[str]) -> str:
    return listed(column.removeprefix("Metadata_").lower() for column in columns)
