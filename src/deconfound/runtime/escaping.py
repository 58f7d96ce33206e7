"""Text of other people's tables and files, made harmless where it is shown: on a terminal, in a
spreadsheet, in a notebook."""

import csv
import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def for_terminal(text: str) -> str:
    """`text` with every character that is not printed as itself written out: "\x1b", "\u202e".

    So no name of a file, column or label can colour, clear or reorder a terminal's text, or begin
    another line.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def one_line(text: str) -> str:
    """The same words, a single space between them."""
    return " ".join(text.split())


def card(title: str, rows: Mapping[str, str]) -> str:
    """A title and named values as a small table of HTML, for a notebook; names show as text."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{_for_html(name)}</th>"
        f"<td style='text-align:left'>{_for_html(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><strong>{_for_html(title)}</strong><table>{cells}</table></div>"


def _for_html(text: str) -> str:
    return html.escape(for_terminal(text))


def for_spreadsheet(table: "pd.DataFrame") -> "pd.DataFrame":
    """`table` with "'" before each text, or column name, that a spreadsheet would compute.

    A spreadsheet computes texts that begin with =, +, -, @, tab or carriage return and are not
    numbers. `from_spreadsheet` takes the marks away again.
    """
    return _each_text(table, _marked)


def csv_text(table: "pd.DataFrame", *, shown: bool = True) -> str:
    """`table` as CSV for a spreadsheet, its texts marked and in quotes, its index left out.

    Characters that are not printed as themselves, line ends aside, are written out as
    `for_terminal` does, unless the table is not to be `shown` but read back equal.
    """
    marked = for_spreadsheet(table)
    if shown:
        marked = _each_text(marked, _line_by_line)
    return str(marked.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))


def from_spreadsheet(table: "pd.DataFrame") -> "pd.DataFrame":
    """`table` without the marks of `for_spreadsheet`."""
    return _each_text(table, _unmarked)


def _each_text(table: "pd.DataFrame", change: Any) -> "pd.DataFrame":
    import pandas as pd  # takes a second, and every verb escapes what it says
    from pandas.api.types import is_numeric_dtype

    parts = [
        values if is_numeric_dtype(values.dtype) else values.map(change, na_action="ignore")
        for _, values in table.items()
    ]
    result = pd.concat(parts, axis=1) if parts else table.copy()
    result.columns = pd.Index([change(name) for name in table.columns])
    return result


def _line_by_line(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return "\n".join(for_terminal(line) for line in value.split("\n"))


def _marked(value: Any) -> Any:
    computes = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if computes else value


def _unmarked(value: Any) -> Any:
    is_marked = isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value)
    return value[1:] if is_marked else value
