"""Reads the image of every row, from one file or one per channel, and requires one form."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deconfound.arrays import Pixels
from deconfound.data.ingest.columns import ImageColumns
from deconfound.data.readers.image import ome_channel_names, read_image, resampled
from deconfound.errors import UserError
from deconfound.runtime.prefetch import in_order

CHUNK_IMAGES = 256
CHUNK_BYTES = 16 * 2**20
_COLOUR_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class RowReader:
    """Reads the image of a row; its channels and type must be those of row 0.

    `files` has the files of every row, one for each of `columns`. Raises UserError, naming row,
    column and file, for a file that cannot be read, and for a form other than row 0's.
    """

    def __init__(
        self,
        files: list[tuple[Path, ...]],
        columns: ImageColumns,
        where: str,
        *,
        channels: tuple[str, ...] = (),
        max_pixels: int = 2**26,
        rgb: bool = False,
    ) -> None:
        self.files = files
        self._columns = columns
        self._where = where
        self._wanted = 1 if columns.channels else len(channels) or None
        self._max_pixels = max_pixels
        self._rgb = rgb
        self.first = self._stacked(0)
        """(C, H, W), the image of row 0."""
        self.channels = columns.channels or self._channel_names(channels)

    def read(self, row: int, *, any_size: bool = False) -> Pixels:
        """(C, H, W) of `row`; its height and width are those of row 0 unless `any_size`."""
        if row == 0:
            return self.first
        pixels = self._stacked(row)
        first = self.first
        if pixels.dtype != first.dtype:
            remedy = "convert all to one pixel type"
        elif len(pixels) != len(first):
            remedy = "save all with the same channels"
            if {len(pixels), len(first)} == {1, 3}:
                remedy += ", or pass --rgb"
        elif any_size or pixels.shape == first.shape:
            return pixels
        else:
            remedy = "pass --size N to resize all"
        raise UserError(
            f"{self.place(row)}: (C, H, W) {pixels.shape} {pixels.dtype}; expected {first.shape} "
            f"{first.dtype} as in row 0 ({self.files[0][0].name}); {remedy}"
        )

    def place(self, row: int, position: int = 0, column: str | None = None) -> str:
        """The place that a message names: table, row, column (the file's unless given) and file."""
        named = self._columns.columns
        column = column or (named[position].name if named else None)
        return (
            f"{self._where}: row {row} (from 0): {f'column {column!r}: ' if column else ''}"
            f"{self.files[row][position]}"
        )

    def _stacked(self, row: int) -> Pixels:
        planes: list[Pixels] = []
        for position, file in enumerate(self.files[row]):
            try:
                plane = read_image(file, channels=self._wanted, max_pixels=self._max_pixels)
            except UserError as error:
                raise UserError(f"{self.place(row, position)}: {error}") from error
            if self._columns.channels and len(plane) != 1:
                raise UserError(
                    f"{self.place(row, position)}: {len(plane)} channels; expected one, as each "
                    "channel has its column: save it as grey"
                )
            if planes and (plane.shape, plane.dtype) != (planes[0].shape, planes[0].dtype):
                raise UserError(
                    f"{self.place(row, position)}: {plane.shape[1:]} {plane.dtype}, but "
                    f"{planes[0].shape[1:]} {planes[0].dtype} in column "
                    f"{self._columns.columns[0].name!r}; save a row's channels in one size and type"
                )
            planes.append(plane)
        if len(planes) > 1:
            return np.concatenate(planes)
        if self._rgb and len(planes[0]) == 1:
            return np.repeat(planes[0], 3, axis=0)
        return planes[0]

    def _channel_names(self, channels: tuple[str, ...]) -> tuple[str, ...]:
        found = len(self.first)
        if not channels:
            file = self.files[0][0]
            named = None if self._rgb or file.is_dir() else ome_channel_names(file, found)
            if named is not None:
                return named
            colour = found == 3 and file.suffix.lower() in _COLOUR_SUFFIXES
            return ("R", "G", "B") if colour else tuple(f"channel_{c}" for c in range(found))
        if len(channels) != found:
            raise UserError(
                f"{self.place(0)}: {found} channels, but --channels names "
                f"{len(channels)} ({', '.join(channels)}); name as many"
            )
        return channels


def whole_images(
    reader: RowReader, *, size: int | None, threads: int, start: int = 0
) -> Iterator[Pixels]:
    """The images of the rows from `start` in order, (B, C, H, W) at a time, resized to `size`."""
    height, width = (size, size) if size else reader.first.shape[1:]
    shape = (len(reader.first), height, width)

    def chunk(rows: range) -> Pixels:
        images = np.empty((len(rows), *shape), reader.first.dtype)
        for position, row in enumerate(rows):
            pixels = reader.read(row, any_size=size is not None)
            images[position] = resampled(pixels, size) if size else pixels
        return images

    per_chunk = images_per_chunk(int(np.prod(shape)) * reader.first.itemsize)
    count = len(reader.files)
    firsts = range(start, count, per_chunk)
    chunks = (range(first, min(first + per_chunk, count)) for first in firsts)
    return in_order(chunk, chunks, threads)


def images_per_chunk(image_bytes: int) -> int:
    """Number of images of `image_bytes` bytes each that are handled at a time."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
