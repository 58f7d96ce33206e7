"""Lines of a text file as cells, in quotes or not, each with the number of its line."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deconfound.data.tables.compressed import open_text


class Record(NamedTuple):
    """One line of a table; with cells that hold line ends in quotes, several lines of the file."""

    line: int
    """The number of its first line, from 1."""
    cells: list[str]


def tabbed(path: Path) -> list[Record]:
    """The records of a file of tabs without the blank ones.

    Where quotes do not close as they should, a quote is a letter like any other, but for those
    around a whole cell.
    """
    try:
        return list(_records(path, "\t"))
    except csv.Error:
        with open_text(path) as stream:
            lines = [line.rstrip("\r\n").split("\t") for line in stream]
        return [
            Record(number, [_unquoted(cell) for cell in cells])
            for number, cells in enumerate(lines, start=1)
            if _filled(cells)
        ]


def with_commas(path: Path) -> list[Record]:
    """The records of a file of commas without the blank ones; raises csv.Error for open quotes."""
    return list(_records(path, ","))


def _records(path: Path, separator: str) -> Iterator[Record]:
    with open_text(path) as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        before = 0
        for cells in reader:
            if _filled(cells):
                yield Record(before + 1, cells)
            before = reader.line_num


def _filled(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells)


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
