"""The table of a screen: columns, their roles, the codes made from them, and checks of rows."""

import csv
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel

from deconfound.arrays import Codes
from deconfound.config import did_you_mean
from deconfound.data.tables.compressed import open_text, readable, refuse_unfit_packing, table_kind
from deconfound.errors import UserError
from deconfound.runtime.escaping import from_spreadsheet

EXPORTED_PATH = "deconfound_path"
"""Column of image paths in a table written by export."""

ROW_IDS = ("Metadata_RowID", "Metadata_CellID")
IMAGE_IDS = ("Metadata_ImageID", "Metadata_ImageNumber", "ImageNumber")
OBJECT_IDS = ("Metadata_ObjectNumber", "ObjectNumber")
LEVEL_COLUMNS = (
    "Metadata_Source",
    "Metadata_Series",
    "Metadata_Batch",
    "Metadata_Plate",
    "Metadata_Section",
)
"""The usual names of nested levels, outermost first."""
PLACES = (
    *LEVEL_COLUMNS,
    "Metadata_Well",
    "Metadata_Site",
    "TableNumber",
    "Metadata_TableNumber",
    "ObjectType",
    "Metadata_ObjectType",
)
"""Columns of places; each place may count its identifiers from 1 again."""


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
    """Read a CSV, TSV (also packed: .gz, .bz2, .xz) or Parquet table; text stays text.

    "01" is not 1. Raises UserError if the file is missing, of another kind, unreadable or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table; give a .csv, .tsv or .parquet file")
    with readable(path):
        refuse_unfit_packing(path)
        match table_kind(path):
            case ".csv":
                table = _read_text(path, ",")
            case ".tsv":
                table = _read_text(path, "\t")
            case ".parquet":
                table = pd.read_parquet(path)
            case _:
                raise UserError(f"{path}: not a table; expected .csv, .tsv or .parquet")
    if table.empty:
        raise UserError(f"{path}: the table has no rows; expected one row per image")
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one of them")
    return table.reset_index(drop=True)


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    with open_text(path) as stream:
        header = next(csv.reader(stream, delimiter=separator), [])
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one of them")
    with warnings.catch_warnings():
        # A row longer than the header would otherwise shift or lose a column with a warning only.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(path, dtype=str, sep=separator, index_col=False)
    return from_spreadsheet(table) if EXPORTED_PATH in table.columns else table


def require_columns(table: pd.DataFrame, columns: Iterable[str], where: str) -> None:
    """Raise UserError naming the first column that `table` lacks and the nearest one it has."""
    for column in columns:
        if column not in table.columns:
            known = [str(name) for name in table.columns]
            hint = did_you_mean(column, known, f"it has {listed(known)}")
            raise UserError(f"{where}: there is no column {column!r}; {hint}")


def joined(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The values of `columns` joined by "/" (text); missing where any of them is missing.

    A "/" inside one of several values is written "%2F" and a "%" "%25", so that different values
    never join to the same text.
    """
    if len(columns) == 1:
        return table[columns[0]].astype("string")
    text = _escaped(table[columns[0]])
    for column in columns[1:]:
        text = text.str.cat(_escaped(table[column]), sep="/")
    return text


def _escaped(values: pd.Series) -> pd.Series:
    text = values.astype("string")
    return text.str.replace("%", "%25", regex=False).str.replace("/", "%2F", regex=False)


def nested_ids(table: pd.DataFrame, levels: Sequence[str]) -> pd.DataFrame:
    """Globally unique ids of every level, made by prefixing the parents: "S1/P2/A".

    One text column per level, in the order given (outermost first).
    """
    return pd.DataFrame(
        {level: joined(table, levels[: depth + 1]) for depth, level in enumerate(levels)}
    )


def coded(values: pd.Series, names: Sequence[str] | None = None) -> Coded:
    """Integer codes of a text column, numbered in sorted order, or by `names` where given."""
    text = values.astype("string")
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
        text = table[column].astype("string").str.strip()
        empty = np.flatnonzero(text.isna() | (text == ""))
        if len(empty):
            rows = ", ".join(str(row) for row in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise UserError(
                f"{where}: column {column!r} is empty in rows {rows}{more} (from 0); fill it in, "
                "or drop these rows"
            )


def refuse_repeated_ids(
    table: pd.DataFrame, roles: Roles, where: str, *, row_is_image: bool
) -> None:
    """Raise UserError naming the first two rows with one identifier in one place.

    An identifier is a row's or a cell's id; an image's and an object's together; or an image's
    alone where every row is an image and nothing numbers objects. A row without an identifier is
    not compared.
    """
    present = set(table.columns)
    images = [name for name in IMAGE_IDS if name in present]
    objects = [name for name in OBJECT_IDS if name in present]
    candidates = [[name] for name in ROW_IDS if name in present]
    if images and objects:
        candidates.append([images[0], objects[0]])
    elif not candidates and row_is_image and "Metadata_ImageID" in present:
        candidates.append(["Metadata_ImageID"])
    own = {*roles.environment, *roles.levels, *([roles.well] if roles.well else [])}
    place = [name for name in table.columns if name in own or name in PLACES]
    for columns in candidates:
        rows = table[columns].notna().all(axis=1).to_numpy()
        key = table.loc[rows, list(dict.fromkeys([*place, *columns]))].astype("string")
        again = np.flatnonzero(key.duplicated())
        if not len(again):
            continue
        numbers = np.flatnonzero(rows)
        same = (key == key.iloc[again[0]]) | (key.isna() & key.iloc[again[0]].isna())
        first = int(np.flatnonzero(same.fillna(False).all(axis=1))[0])
        named = " and ".join(repr(name) for name in columns)
        values = ", ".join(str(value) for value in key.iloc[again[0]][columns])
        raise UserError(
            f"{where}: rows {numbers[first]} and {numbers[again[0]]} (from 0) have the same "
            f"{named} ({values}), {len(again)} in all; drop the repeated rows, or rename the "
            "column if it is no identifier"
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
