"""A NumPy array in a .npy or a .npz, read a part at a time; nothing is unpickled."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from deconfound.arrays import Pixels
from deconfound.data.readers.bounds import MAX_PIXELS, refuse_huge
from deconfound.errors import UserError


class StoredArray(Protocol):
    """An array of numbers on the disk, (N, …)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def parts(self, part_bytes: int) -> Iterator[Pixels]:
        """All rows in order, about `part_bytes` at a time; raises UserError for damage."""


def open_array(file: Path, key: str | None = None, *, max_pixels: int = MAX_PIXELS) -> StoredArray:
    """The array in `file`: in a .npz the array called `key`, or the only array.

    Raises UserError for a file that cannot be read, an unknown key, values that are not numbers, no
    rows, fewer than two axes or more than four, and rows of more than `max_pixels` values.
    """
    with _explained(file):
        packed = zipfile.is_zipfile(file)
        opened: StoredArray = _Packed(file, key) if packed else _Mapped(file)
    if opened.dtype.kind not in "uif" or len(opened.shape) not in (2, 3, 4):
        raise UserError(
            f"{file}: {opened.shape} {opened.dtype}; expected numbers as N × C × H × W, "
            "N × H × W × C, N × H × W or N × D"
        )
    if 0 in opened.shape:
        raise UserError(f"{file}: {opened.shape}; expected at least one row and value")
    try:
        refuse_huge(math.prod(opened.shape[1:]), max_pixels, "values in a row")
    except UserError as error:
        raise UserError(f"{file}: {opened.shape} {opened.dtype}: {error}") from error
    return opened


class _Mapped:
    """A .npy, read by memory map."""

    def __init__(self, file: Path) -> None:
        self._values: Pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        self.shape, self.dtype = self._values.shape, self._values.dtype

    def parts(self, part_bytes: int) -> Iterator[Pixels]:
        rows = max(1, part_bytes // _row_bytes(self))
        for start in range(0, len(self._values), rows):
            yield self._values[start : start + rows]


class _Packed:
    """An array of a .npz, unpacked as it is read."""

    def __init__(self, file: Path, key: str | None) -> None:
        self._file = file
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if key is None and len(entries) == 1:
                [key] = entries
            if key not in entries:
                raise UserError(
                    f"{file}: holds the arrays {', '.join(entries)}; name one of them with "
                    "--array-key"
                )
            self._entry = entries[key]
            with archive.open(self._entry) as stream:
                self.shape, columns_first, self.dtype = _header(stream)
                found = self._entry.file_size - stream.tell()
        if self.dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        needed = math.prod(self.shape) * self.dtype.itemsize
        if found != needed:
            raise ValueError(f"{key} says {self.shape} {self.dtype} but holds {found} bytes")
        if columns_first and len(self.shape) > 1:
            raise UserError(
                f"{file}: {key} lies column by column (Fortran order) and cannot be read by row; "
                "save numpy.ascontiguousarray of it, or as .npy"
            )

    def parts(self, part_bytes: int) -> Iterator[Pixels]:
        size = _row_bytes(self)
        rows = max(1, part_bytes // size)
        with (
            _explained(self._file),
            zipfile.ZipFile(self._file) as archive,
            archive.open(self._entry) as stream,
        ):
            _header(stream)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                data = stream.read(count * size)
                if len(data) < count * size:
                    raise EOFError("it ends too early")
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _row_bytes(array: StoredArray) -> int:
    return max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether values lie column by column, and the dtype."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn errors of a file that is damaged or holds no array into one line."""
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,  # of an archive with a password, or packed in an unknown way
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}: cannot be read as a .npy or .npz of numbers ({reason}); save it again"
        ) from error
