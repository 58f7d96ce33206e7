"""What verbs say: lines and tables, harmless for a terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from deconfound.runtime.escaping import for_terminal


def say(text: str) -> None:
    """One line on the terminal."""
    print(for_terminal(text))


def print_table(columns: list[str], rows: list[list[str]], plain: bool = False) -> None:
    """A table with borders, or a `plain` one whose cells are wrapped and never cut."""
    table = Table(
        *(Column(_cell(column), overflow="fold" if plain else "ellipsis") for column in columns),
        box=box.SIMPLE_HEAD if plain else box.HEAVY_HEAD,
        show_header=any(columns),
        pad_edge=not plain,
        padding=(0, 1, 0, 0) if plain else (0, 1),
    )
    if plain:
        table.columns[0].min_width = min(32, max(len(row[0]) for row in rows))
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console()
    with console.capture() as shown:  # rich would end the process where the reader has gone
        console.print(table)
    print(shown.get(), end="")


def _cell(text: str) -> str:
    return escape(for_terminal(text))
