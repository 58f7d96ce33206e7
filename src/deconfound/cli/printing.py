"""What verbs say: lines and tables, harmless for a terminal."""

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

from deconfound.runtime.escaping import for_terminal, one_line

WIDEST = 100_000
"""Columns of a terminal that holds any table."""


def say(text: str) -> None:
    """One line on the terminal."""
    print(for_terminal(text))


def print_table(columns: list[str], rows: list[list[str]], plain: bool = False) -> None:
    """A table with borders, or a `plain` one; cells are wrapped between words and never cut.

    Where the longest words do not fit, the table is wider than the terminal.
    """
    table = Table(
        *(_column(header, cells) for header, *cells in zip(columns, *rows, strict=True)),
        box=box.SIMPLE_HEAD if plain else box.HEAVY_HEAD,
        show_header=any(columns),
        pad_edge=not plain,
        padding=(0, 1, 0, 0) if plain else (0, 1),
    )
    if plain:
        first = table.columns[0]
        first.min_width = max(first.min_width or 0, min(32, max(len(row[0]) for row in rows)))
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console()
    wide = console.options.update(max_width=WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).minimum)
    with console.capture() as shown:  # rich would end the process where the reader has gone
        console.print(table, crop=False)
    print(shown.get(), end="")


def print_lines(columns: list[str], rows: list[list[str]]) -> None:
    """One line a row, in columns as wide as it takes: nothing is wrapped or cut."""
    lines = [[for_terminal(one_line(cell)) for cell in line] for line in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell + " " * (w - cell_len(cell)) for cell, w in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _column(header: str, cells: list[str]) -> Column:
    """A column no narrower than its longest word."""
    words = " ".join(map(for_terminal, [header, *cells])).split()
    return Column(_cell(header), overflow="fold", min_width=max(map(cell_len, words), default=1))


def _cell(text: str) -> str:
    return escape(for_terminal(text))
