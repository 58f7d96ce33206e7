"""A file that grows by appending and, after a kill, continues from its last flushed bytes."""

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel

from deconfound.files.atomic import flush

READ_BYTES = 2**20
MARK_SECONDS = 5.0
"""Seconds between marks: the most work that a killed process loses."""


class Mark(BaseModel, frozen=True, extra="forbid"):
    """Number and checksum of the first bytes of a file, which are on the disk."""

    bytes: int
    sha256: str


class Damaged(Exception):
    """The file does not hold the bytes of its mark."""


class GrowingFile:
    """A file whose first bytes are `head`; the caller closes it.

    With `mark` it continues after the bytes marked; bytes written later are cut off. Raises Damaged
    if those bytes are missing or have another checksum.
    """

    def __init__(self, path: Path, head: bytes = b"", mark: Mark | None = None) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if mark is None else 0), 0o644)
        except FileNotFoundError as error:
            raise Damaged(f"{path} is missing") from error
        self._bytes = 0
        self._digest = hashlib.sha256()
        try:
            if mark is None:
                os.ftruncate(self._descriptor, 0)
            self.append(head)
            if mark is not None:
                self._go_on_from(mark)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Close the file; nothing more is flushed."""
        os.close(self._descriptor)

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._digest.update(data)
        left = memoryview(data).cast("B")
        while left:
            written = os.pwrite(self._descriptor, left, self._bytes)
            left = left[written:]
            self._bytes += written

    def mark(self) -> Mark:
        """Flush the bytes appended to the disk, and return the mark that describes them."""
        flush(self._path)
        return Mark(bytes=self._bytes, sha256=self._digest.hexdigest())

    def change_head(self, head: bytes) -> None:
        """Write another head of the same length."""
        os.pwrite(self._descriptor, head, 0)
        self._digest = self._hashed(self._bytes)

    def read(self, count: int, place: int) -> bytes:
        """`count` bytes from `place`; raises Damaged if the file ends before."""
        data = os.pread(self._descriptor, count, place)
        if len(data) < count:
            raise Damaged(f"{self._path} is cut short")
        return data

    def _go_on_from(self, mark: Mark) -> None:
        self._bytes, self._digest = mark.bytes, self._hashed(mark.bytes)
        if self._digest.hexdigest() != mark.sha256:
            raise Damaged(f"{self._path} has another checksum")
        os.ftruncate(self._descriptor, mark.bytes)

    def _hashed(self, count: int) -> "hashlib._Hash":
        digest = hashlib.sha256()
        for place in range(0, count, READ_BYTES):
            digest.update(self.read(min(READ_BYTES, count - place), place))
        return digest
