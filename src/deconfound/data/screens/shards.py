"""Images or profiles written to NumPy files of bounded size, one after the other."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from deconfound.arrays import Images
from deconfound.errors import UserError
from deconfound.files.atomic import discard, flush
from deconfound.files.checksums import sha256
from deconfound.files.growing import Damaged, GrowingFile, Mark
from deconfound.runtime import limits


class Shard(BaseModel, frozen=True, extra="forbid"):
    """One file of consecutive images."""

    file: str
    rows: int
    sha256: str
    """Of the file."""
    pixels_sha256: str = Field("", exclude_if=lambda given: not given)
    """Of the NumPy file of the same images, where `file` is none."""
    start_sha256: str = Field("", exclude_if=lambda given: not given)
    """Of the index of a shard of Zarr and the chunk after it, which are verified when it is read;
    empty in a screen made before it was recorded."""

    @property
    def identity(self) -> str:
        """The same for the same images, however they are stored."""
        return self.pixels_sha256 or self.sha256


Pack = Callable[[Path, Shard, int, int], Shard]
"""Writes the images of a complete NumPy file in another form, as the shard of a number; the last
argument is how many images a shard holds."""


class ShardsMark(BaseModel, frozen=True, extra="forbid"):
    """The images that are on the disk: complete shards, and part of the next one."""

    shape: tuple[int, ...]
    """Shape of one image."""
    dtype: str
    shards: tuple[Shard, ...]
    part: Mark | None
    part_rows: int
    black: int
    """Images in which every pixel is 0."""


class ShardWriter:
    """Writes arrays (B, …) to `images-00000.npy` … in `folder`, each of `shard_bytes` at most.

    The files are as `numpy.save` writes them; with `pack` each is written in another form as soon
    as it is complete. With `mark` the writer continues after the images marked; raises Damaged if
    they are missing.
    """

    def __init__(
        self,
        folder: Path,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        shard_bytes: int,
        mark: ShardsMark | None = None,
        pack: Pack | None = None,
    ) -> None:
        self._folder = folder
        self._pack = pack
        self._packed: list[Path] = []
        self.shape = tuple(shape)
        self.dtype = dtype
        self.capacity = rows_of_shard(self.shape, dtype, shard_bytes)
        """Images of a whole shard."""
        self._shards: list[Shard] = []
        self._part: GrowingFile | None = None
        self._part_rows = 0
        self.black = 0
        """Images appended so far in which every value is 0."""
        if mark is not None:
            self._go_on_from(mark)

    @property
    def rows(self) -> int:
        """Images appended so far."""
        return sum(shard.rows for shard in self._shards) + self._part_rows

    def append(self, images: Images) -> None:
        """Add images (B, …) of the writer's shape and dtype."""
        done = 0
        while done < len(images):
            if self._part is None:
                self._part = GrowingFile(self._next_file(), self._head(self.capacity))
            some = np.ascontiguousarray(images[done : done + self.capacity - self._part_rows])
            self._part.append(some.data)
            self._part_rows += len(some)
            self.black += int((~some.reshape(len(some), -1).any(axis=1)).sum())
            done += len(some)
            if self._part_rows == self.capacity:
                self._end_shard(self._part)

    def mark(self) -> ShardsMark:
        """Flush the images appended to the disk, and return the mark that describes them."""
        flush(self._folder)
        return ShardsMark(
            shape=self.shape,
            dtype=str(self.dtype),
            shards=tuple(self._shards),
            part=None if self._part is None else self._part.mark(),
            part_rows=self._part_rows,
            black=self.black,
        )

    def finish(self) -> tuple[Shard, ...]:
        """Complete the last shard; returns all shards, which are on the disk."""
        if self._part is not None:
            self._part.change_head(self._head(self._part_rows))
            self._end_shard(self._part)
        return tuple(self._shards)

    def drop_packed(self) -> None:
        """Remove the NumPy files of the shards that were packed; a mark that names them is kept."""
        for file in self._packed:
            discard(file)
        self._packed = []

    def close(self) -> None:
        """Close the shard that is being written."""
        if self._part is not None:
            self._part.close()

    def _next_file(self) -> Path:
        return self._folder / shard_name(len(self._shards))

    def _end_shard(self, part: GrowingFile) -> None:
        file = self._next_file()
        shard = Shard(file=file.name, rows=self._part_rows, sha256=part.mark().sha256)
        if self._pack is not None:
            shard = self._pack(file, shard, len(self._shards), self.capacity)
            self._packed.append(file)
        self._shards.append(shard)
        self._part, self._part_rows = None, 0
        part.close()

    def _head(self, rows: int) -> bytes:
        return head_of(rows, self.shape, self.dtype)

    def _go_on_from(self, mark: ShardsMark) -> None:
        if (mark.shape, mark.dtype) != (self.shape, str(self.dtype)):
            raise Damaged("the images have another form")
        for shard in mark.shards:
            file = self._folder / shard.file
            if not file.is_file() or sha256(file) != shard.sha256:
                raise Damaged(f"{file} is missing or has another checksum")
        self._shards = list(mark.shards)
        if self._pack is not None:
            self._packed = [self._folder / shard_name(place) for place in range(len(mark.shards))]
        if mark.part is not None:
            self._part = GrowingFile(self._next_file(), self._head(self.capacity), mark.part)
        self._part_rows, self.black = mark.part_rows, mark.black


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"images-{number:05d}.npy"


def rows_of_shard(shape: Sequence[int], dtype: np.dtype[Any], shard_bytes: int) -> int:
    """Most images of this shape (without N) that a file of `shard_bytes` holds; 1 or more."""
    return max(1, shard_bytes // max(1, dtype.itemsize * int(np.prod(tuple(shape)))))


def head_of(rows: int, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """The header that `numpy.save` writes; its length does not depend on the number of rows."""
    stream = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape), dtype))
    described["shape"] = (rows, *shape)
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


def open_shard(path: Path, shard: Shard, shape: Sequence[int], dtype: str) -> Images:
    """A map of the images of a NumPy file in `path`; raises UserError if it holds others."""
    file = path / shard.file
    if Path(shard.file).name != shard.file:
        raise UserError(f"{path}: shard {shard.file!r} lies outside the screen; make it again")
    try:
        images: Images = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy has no one exception for a damaged header
        if (refused := limits.refused(error)) is not None:
            raise UserError(f"{file}: cannot be read; {refused}") from error
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}: missing or cut short ({reason}); make the screen again"
        ) from error
    if images.shape != (shard.rows, *shape) or str(images.dtype) != dtype:
        raise UserError(f"{file}: holds {images.shape} {images.dtype}, screen.json says otherwise")
    return images
