"""Cells cut out of fields of view: one row of the table per cell, many rows per image."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel

from deconfound.arrays import Doubles, Pixels, Rows
from deconfound.data.ingest.rows import RowReader, images_per_chunk
from deconfound.data.readers.resizing import resampled
from deconfound.data.tables.separators import comma_hint
from deconfound.data.tables.table import columns_of, require_columns
from deconfound.errors import UserError
from deconfound.files import atomic, growing
from deconfound.files.growing import Damaged, GrowingFile, Mark
from deconfound.runtime.prefetch import in_order

ROW_BYTES = 8
"""Bytes of the row number that is written before the pixels of a crop."""
CENTRE_COLUMNS = tuple(
    (f"{name}X", f"{name}Y")
    for name in (
        "Nuclei_Location_Center_",
        "Nuclei_AreaShape_Center_",
        "Metadata_Nuclei_Location_Center_",
        "Location_Center_",
        "AreaShape_Center_",
        "Metadata_",
    )
)
"""Columns of x and y as CellProfiler and DeepProfiler name them; the first pair present counts."""


def centre_columns(table: pd.DataFrame, given: Sequence[str], where: str) -> tuple[str, str]:
    """The columns of the centres' x and y: `given`, or the first pair of `CENTRE_COLUMNS`.

    Raises UserError if one is missing, or if not two are given.
    """
    if given:
        require_columns(table, given, where)
        if len(given) != 2:
            raise UserError(
                f"{where}: --centre-columns names {len(given)} columns; expected two, x and y"
            )
        return given[0], given[1]
    for pair in CENTRE_COLUMNS:
        if set(pair) <= set(table.columns):
            return pair
    looked = ", ".join(f"{x}/{y[-1]}" for x, y in CENTRE_COLUMNS)
    raise UserError(
        f"{where}: no columns of the cells' centres (looked for {looked}); {columns_of(table)}; "
        "name those of x and y with --centre-columns"
    )


def centres(table: pd.DataFrame, columns: Sequence[str], where: str) -> Doubles:
    """(N, 2) x and y of every cell in pixels, where 0 is the middle of the first pixel.

    Raises UserError naming the first row whose value is no finite number.
    """
    values = np.empty((len(table), len(columns)))
    for position, column in enumerate(columns):
        values[:, position] = pd.to_numeric(table[column], errors="coerce")
        wrong = np.flatnonzero(~np.isfinite(values[:, position]))
        if len(wrong):
            raise UserError(
                f"{where}: row {wrong[0]} (from 0): column {column!r} holds "
                f"{table[column].iloc[wrong[0]]!r}; expected a number of pixels, {len(wrong)} rows "
                f"have none{comma_hint(table[column].iloc[wrong[0]])}: mend or drop them, or name "
                "others with --centre-columns"
            )
    return values


class CutMark(BaseModel, frozen=True, extra="forbid"):
    """The fields whose cells are on the disk."""

    fields: int
    cells: Mark


class FieldCrops:
    """Square crops around the cells of every field, each field read once.

    Within `spooled`, `cut` all fields, then take the `kept` cells in the table's order. `columns`
    are those of the centres' x and y (looked up if empty), `crop` is the side in pixels, `size` the
    side after resizing. Raises UserError for centres that are missing or no numbers, and for a cell
    that is given twice.
    """

    def __init__(
        self,
        reader: RowReader,
        table: pd.DataFrame,
        where: str,
        *,
        columns: Sequence[str],
        crop: int,
        size: int | None,
        threads: int,
    ) -> None:
        self._reader = reader
        self._columns = centre_columns(table, columns, where)
        self._centres = centres(table, self._columns, where)
        self._crop = crop
        self._size = size
        self._threads = threads
        self.side = size or crop
        """Pixels along each side of a crop as it is kept."""
        self._shape = (len(reader.first), self.side, self.side)
        self._bytes = math.prod(self._shape) * reader.first.itemsize
        self._refuse_small(0, reader.first)
        self._fields = self._rows_by_field()
        self._spool: GrowingFile | None = None
        self._note = Path()
        self._cut = 0
        self._place = np.full(len(table), -1, dtype=np.int64)
        """(N,) position of each row's crop in the spool; −1 for a row without a crop."""
        self._spooled = 0

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """(N,) whether each cell's crop lies in its field; known once all fields are cut."""
        return self._place >= 0

    @property
    def done(self) -> int:
        """Cells of the fields that are cut."""
        return sum(map(len, self._fields[: self._cut]))

    @contextmanager
    def spooled(self, folder: Path) -> Iterator[None]:
        """Keep the crops in `folder`; fields whose crops are there already count as cut."""
        self._note, file = folder / "cut.json", folder / "cells"
        try:
            mark = CutMark.model_validate_json(self._note.read_bytes())
            self._spool = GrowingFile(file, mark=mark.cells)
            self._cut = mark.fields
            self._spooled = mark.cells.bytes // (ROW_BYTES + self._bytes)
            for place in range(self._spooled):
                stored = self._spool.read(ROW_BYTES, place * (ROW_BYTES + self._bytes))
                self._place[int.from_bytes(stored, "little")] = place
        except (FileNotFoundError, ValueError, Damaged):
            atomic.discard(self._note)
            self._spool = GrowingFile(file)
        with closing(self._spool):
            yield

    def summary(self) -> dict[str, Any]:
        """For the provenance: the columns, and how many fields, rows and dropped cells."""
        return {
            "centre_columns": self._columns,
            "fields": len(self._fields),
            "rows_of_table": len(self.inside),
            "dropped_at_border": int((~self.inside).sum()),
        }

    def cut(self) -> Iterator[int]:
        """Cut every field's cells; yields the number of cells after each field.

        Raises UserError for a field that cannot be read or is smaller than the crop, for a centre
        outside its field, and if no cell is left.
        """
        marked = time.monotonic()
        fields = self._fields[self._cut :]
        results = in_order(self._cut_field, fields, self._threads)
        for rows, cells in zip(fields, results, strict=True):
            for row, cell in cells:
                self._opened().append(row.to_bytes(ROW_BYTES, "little") + cell)
                self._place[row] = self._spooled
                self._spooled += 1
            self._cut += 1
            if time.monotonic() - marked >= growing.MARK_SECONDS or self._cut == len(self._fields):
                mark = CutMark(fields=self._cut, cells=self._opened().mark())
                atomic.write_text(self._note, mark.model_dump_json())
                marked = time.monotonic()
            yield len(rows)
        if not self.inside.any():
            raise UserError(
                f"all {len(self.inside)} cells lie too near the border of their field for crops of "
                f"{self._crop} pixels; choose a smaller --crop"
            )

    def kept(self, start: int = 0) -> Iterator[Pixels]:
        """The crops inside their field, (B, C, S, S) at a time, in the table's order."""
        rows = np.flatnonzero(self.inside)
        per_chunk = images_per_chunk(self._bytes)
        for first in range(start, len(rows), per_chunk):
            places = self._place[rows[first : first + per_chunk]]
            crops = np.empty((len(places), *self._shape), self._reader.first.dtype)
            for position, place in enumerate(places.tolist()):
                record = place * (ROW_BYTES + self._bytes)
                stored = self._opened().read(self._bytes, record + ROW_BYTES)
                crops[position] = np.frombuffer(stored, crops.dtype).reshape(self._shape)
            yield crops

    def _rows_by_field(self) -> list[Rows]:
        numbers: dict[tuple[Path, ...], int] = {}
        of_row = np.array([numbers.setdefault(f, len(numbers)) for f in self._reader.files])
        cells = np.column_stack([of_row, self._centres])
        repeated = np.flatnonzero(pd.DataFrame(cells).duplicated())
        if len(repeated):
            row = int(repeated[0])
            earlier = np.flatnonzero((cells == cells[row]).all(axis=1))[0]
            x, y = self._centres[row]
            raise UserError(
                f"{self._reader.place(row)}: the cell at {x:g}, {y:g} is already in row "
                f"{earlier}; expected one row per cell, drop one of them"
            )
        order = np.argsort(of_row, kind="stable")
        return np.split(order, np.cumsum(np.bincount(of_row))[:-1])

    def _refuse_small(self, row: int, field: Pixels) -> None:
        _, height, width = field.shape
        if min(height, width) < self._crop:
            raise UserError(
                f"{self._reader.place(row)}: a field of {height} × {width} pixels, smaller than a "
                f"crop of {self._crop}; choose a smaller --crop"
            )

    def _cut_field(self, rows: Rows) -> list[tuple[int, bytes]]:
        """The rows whose crop lies in the field of all `rows`, with its pixels."""
        cells = []
        field = self._reader.read(int(rows[0]), any_size=True)
        self._refuse_small(int(rows[0]), field)
        sides = np.array(field.shape[:0:-1])  # width, height, as x and y
        for row in rows.tolist():
            centre = self._centres[row]
            for value, side, column in zip(centre, sides, self._columns, strict=True):
                if not -0.5 <= value <= side:
                    raise UserError(
                        f"{self._reader.place(row, column=column)}: the centre {value:g} lies "
                        f"outside its field of {sides[1]} × {sides[0]} (H × W) pixels; check that "
                        "the columns are x and y in this order, in pixels, of this image"
                    )
            # The window whose middle is nearest to the centre.
            left, top = (int(edge) for edge in np.ceil(centre - self._crop / 2))
            right, bottom = left + self._crop, top + self._crop
            if left < 0 or top < 0 or right > sides[0] or bottom > sides[1]:
                continue
            cell = field[:, top:bottom, left:right]
            if self._size is not None:
                cell = resampled(cell, (self._size, self._size))
            cells.append((row, cell.tobytes()))
        return cells

    def _opened(self) -> GrowingFile:
        if self._spool is None:
            raise RuntimeError("FieldCrops is used outside `spooled`")
        return self._spool
