"""Keys: the text by which values are compared, in whatever way a table writes them.

Blanks around a value are no part of it, a whole number is the same with and without ".0", and a
well is a letter or two and a number: "A1", "a01" and "A01" are one well. A number with leading
zeros stays as it is, since it may be a barcode, and so do capitals outside wells.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Rows
from deconfound.errors import UserError

_INVISIBLE = "\ufeff\u200b"
_WHOLE = re.compile(r"([+-]?(?:0|[1-9][0-9]*))\.0*")
_WELL_COLUMN = re.compile(r"(.*_)?well(_?(id|name|position))?", re.IGNORECASE)
_WELL = re.compile(r"([A-Z]|A[A-F])[ _-]?0*([1-9][0-9]?)", re.IGNORECASE)
COLUMNS_OF_A_PLATE = 48
"""Of a plate of 1,536 wells, whose rows are A to Z and AA to AF."""


def key(value: str, *, well: bool = False) -> str:
    """The key of one value, of a column of wells if `well`; "" for blanks alone."""
    text = value.strip().strip(_INVISIBLE).strip()
    if matched := _WHOLE.fullmatch(text):
        return "0" if matched[1] in ("-0", "+0") else matched[1].removeprefix("+")
    if well and (matched := _WELL.fullmatch(text)) and int(matched[2]) <= COLUMNS_OF_A_PLATE:
        return f"{matched[1].upper()}{int(matched[2]):02d}"
    return text


def shown(value: object) -> str:
    """A value of a table as messages show it; None where it is missing, however."""
    return "None" if pd.Series([value], dtype=object).isna().iloc[0] else repr(value)


def row_and_column(well: str) -> tuple[int, int] | None:
    """Row and column of a well on its plate, from 1: (2, 3) of "B03"; None if it is no well."""
    matched = _WELL.fullmatch(well.strip())
    if matched is None or int(matched[2]) > COLUMNS_OF_A_PLATE:
        return None
    row = 0
    for letter in matched[1].upper():
        row = 26 * row + ord(letter) - ord("A") + 1
    return row, int(matched[2])


def holds_wells(column: object) -> bool:
    """Whether a column is one of wells by its name, such as Metadata_Well or well_id."""
    return _WELL_COLUMN.fullmatch(str(column)) is not None


def keys(values: pd.Series, *, well: bool | None = None) -> pd.Series:
    """The key of every value of a column, as text; missing where a value is missing or blank.

    `well` says whether the column holds wells; its name does if not given.
    """
    well = holds_wells(values.name) if well is None else well
    try:
        codes, names = pd.factorize(values)
        written = pd.Series(names).astype("string")
    except TypeError as error:  # lists and structures
        kind = type(values.dropna().iloc[0]).__name__
        raise UserError(
            f"column {values.name!r} holds values of type {kind} that are no text; write one text "
            "or number a row"
        ) from error
    found = pd.array([key(name, well=well) or None for name in written], dtype="string")
    return pd.Series(
        found.take(codes, allow_fill=True, fill_value=pd.NA), index=values.index, name=values.name
    )


class Unified(NamedTuple):
    """A table in which one thing is written in one way, and what is to be said of that."""

    table: pd.DataFrame
    notes: tuple[str, ...]


def unified(table: pd.DataFrame, columns: Iterable[str], wells: Sequence[str] = ()) -> Unified:
    """`table` with the keys in those of `columns` that write some value in two ways.

    `wells` are columns of wells whatever their names. The notes name these columns, those of
    values that differ by case alone, and those of `wells` with rows that have none.
    """
    table, notes = table.copy(deep=False), []
    for column in dict.fromkeys(columns):
        well = holds_wells(column) or column in wells
        written = pd.DataFrame({"as": table[column].astype("string")}).assign(
            key=keys(table[column], well=well)
        )
        spelled = written.dropna().drop_duplicates()
        twice = spelled[spelled.duplicated("key", keep=False)]
        if len(twice):
            one = twice["key"].iloc[0]
            ways = " and ".join(repr(way) for way in twice.loc[twice["key"] == one, "as"][:3])
            notes.append(
                f"column {column!r} writes {twice['key'].nunique()} of its values in several ways, "
                f"such as {ways}; taken as one, {one!r}"
            )
            table[column] = written["key"]
        alike = pd.Series(spelled["key"].unique(), dtype="string")
        alike = alike[alike.str.casefold().duplicated(keep=False)]
        if len(alike):
            same = alike[alike.str.casefold() == alike.iloc[0].casefold()]
            notes.append(
                f"column {column!r}: {' and '.join(map(repr, same))} differ by case alone and are "
                "taken as different; write them alike if they are one"
            )
        without = int(written["key"].isna().sum())
        if column in wells and 0 < without < len(table):
            notes.append(
                f"column {column!r}: {without:,} of {len(table):,} rows have no well; each is "
                "taken as a well of its own"
            )
    return Unified(table, tuple(notes))


def row_order(table: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """(N,) int64 row numbers in the order of the keys of `columns`, numbers by their value."""
    ranks = []
    for column in columns:
        text = keys(table[column])
        number = pd.to_numeric(text, errors="coerce")
        counted = number.notna().all() and number.nunique() == text.nunique()
        values = number if counted else text.fillna("")
        ranks.append(pd.factorize(values, sort=True)[0])
    return np.lexsort(ranks[::-1]).astype(np.int64)
