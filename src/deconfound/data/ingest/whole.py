"""Whole images of all rows in order, read in threads or by the workers of a cluster."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from deconfound.arrays import Pixels
from deconfound.data.ingest.forms import Forms, FormsRead
from deconfound.data.ingest.rows import Files, RowReader, images_per_chunk
from deconfound.data.readers.resizing import Fit, Sides, fitted
from deconfound.errors import UserError
from deconfound.runtime.cluster import Cluster
from deconfound.runtime.prefetch import in_order

Part = tuple[range, dict[int, Files]]
"""Rows, and the files of these and of row 0."""


def whole_images(
    reader: RowReader,
    *,
    sides: Sides | None,
    fit: Fit | None,
    threads: int,
    start: int = 0,
    cluster: Cluster | None = None,
) -> Iterator[Pixels]:
    """The images of the rows from `start` in order, (B, C, H, W) at a time.

    All become `sides` (height and width), if given, as `fitted` does, by resizing if `fit` is None.
    With a `cluster` its workers, who share the folder of the images, read them. Raises UserError,
    naming the row, for an image that does not fit.
    """
    shape = (len(reader.first), *(sides or reader.first.shape[1:]))
    per_chunk = images_per_chunk(int(np.prod(shape)) * reader.first.itemsize)
    count = len(reader.files)
    firsts = range(start, count, per_chunk)
    chunks = [range(first, min(first + per_chunk, count)) for first in firsts]
    if cluster is None:
        yield from in_order(lambda rows: _read(reader, rows, sides, fit), chunks, threads)
        return
    elsewhere = copy.copy(reader)
    elsewhere.files, elsewhere.forms = [], FormsRead()
    parts = [(rows, {row: reader.files[row] for row in (0, *rows)}) for rows in chunks]
    worker = _Worker(elsewhere, sides, fit)
    for images, forms in cluster.in_order(worker, parts, threads=1, named=_named):
        reader.forms.join(forms)
        yield images


@dataclass(frozen=True)
class _Worker:
    """Makes what reads the images of some rows in another process."""

    reader: RowReader
    """Without the files, which come with the rows."""
    sides: Sides | None
    fit: Fit | None

    def __call__(self) -> Callable[[Part], tuple[Pixels, Forms | None]]:
        """What reads the images of a part, and says which forms it has met."""

        def read(part: Part) -> tuple[Pixels, Forms | None]:
            rows, files = part
            self.reader.files = cast("list[Files]", files)  # which it asks by the number of a row
            return _read(self.reader, rows, self.sides, self.fit), self.reader.forms.found

        return read


def _read(reader: RowReader, rows: range, sides: Sides | None, fit: Fit | None) -> Pixels:
    shape = (len(reader.first), *(sides or reader.first.shape[1:]))
    images = np.empty((len(rows), *shape), reader.first.dtype)
    for position, row in enumerate(rows):
        pixels = reader.read(row, any_size=sides is not None)
        try:
            images[position] = fitted(pixels, sides, fit or "resize") if sides else pixels
        except UserError as error:
            raise UserError(f"{reader.place(row)}: {error}") from error
    return images


def _named(part: Part) -> str:
    return f"rows {part[0].start:,} to {part[0].stop - 1:,} (from 0)"
