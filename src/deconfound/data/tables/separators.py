"""What stands between the cells of a table of text, and decimal commas in its numbers."""

import csv
import re
from itertools import islice
from pathlib import Path

import pandas as pd

from deconfound.data.tables.compressed import open_text, table_kind
from deconfound.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
"""What the end of a table's name promises."""
ROWS = 20
"""Rows below the header that are looked at."""
_DECIMAL_COMMA = re.compile(r"\s*([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)\s*")


def separator_of(path: Path) -> str:
    """The tab, comma or semicolon between the cells of a table, found from its first rows.

    It divides header and rows into as many cells each, two or more. Where none does, it is what
    the name promises: one column is a table too. Raises UserError if commas and semicolons both
    divide them, for text that is neither UTF-8 nor marked UTF-16, and for Excel's line `sep=;`.
    """
    with open_text(path) as stream:
        first = stream.readline()
    if "\0" in first:
        raise UserError(f"{path}: text of two bytes a letter without a mark; save it as UTF-8")
    if re.fullmatch(r"sep=.?\s*", first):
        raise UserError(f"{path}: begins with Excel's line {first.strip()!r}; delete this line")
    own = SEPARATORS[table_kind(path)]
    rows = {separator: _first_rows(path, separator) for separator in ("\t", ",", ";")}
    widths = {separator: [len(cells) for cells in found] for separator, found in rows.items()}
    divided = {one: found for one, found in widths.items() if min(found, default=1) > 1}
    even = [one for one, found in divided.items() if len(set(found)) == 1]
    if len(even) > 1:
        even = [one for one in even if not _cuts_quotes(rows[one])]
    if "\t" in even:
        return "\t"
    if len(even) == 2:
        raise UserError(
            f"{path}: {widths[','][0]} columns between commas and {widths[';'][0]} between "
            "semicolons; put cells that hold one of them in quotes"
        )
    if even:
        return even[0]
    if divided and widths[own][:1] == [1]:
        return max(divided, key=lambda one: divided[one][0])
    return own


def _first_rows(path: Path, separator: str) -> list[list[str]]:
    """The cells of the header and of the first rows; none if they cannot be read."""
    with open_text(path) as stream:
        try:
            filled = (cells for cells in csv.reader(stream, delimiter=separator) if any(cells))
            return list(islice(filled, ROWS + 1))
        except csv.Error:
            return []


def _cuts_quotes(rows: list[list[str]]) -> bool:
    """Whether a cell in quotes, as "a;b" between commas, was divided."""
    return any(cell.count('"') % 2 for cells in rows for cell in cells)


def with_points(text: pd.DataFrame) -> pd.DataFrame:
    """`text` with decimal points for commas ("0,5") in columns that have no points."""
    return text.apply(_with_points)


def _with_points(values: pd.Series) -> pd.Series:
    known = values.dropna()
    if known.empty or known.str.contains(".", regex=False).any():
        return values
    return values.str.replace(f"^{_DECIMAL_COMMA.pattern}$", r"\1.\2", regex=True)


def comma_hint(value: object) -> str:
    """What a message adds on a value that is no number: often nothing."""
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        return "; write a decimal point for its comma"
    return ""
