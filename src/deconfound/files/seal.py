"""A seal: the SHA-256 of a file inside the file, so that damage is never read as data.

A sealed file holds one line of text, `BLANK` with the checksum of all other bytes in place of the
zeros. It stands where readers of the format skip it: in the user block of HDF5, between the data
and the footer of Parquet, and in JSON as the value of "seal". A program that writes such a file
anew leaves the seal out.
"""

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconfound.errors import UserError
from deconfound.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HEAD, TAIL = b"deconfound-seal sha256 ", b" of all other bytes"
BLANK = HEAD + b"0" * 64 + TAIL
USER_BLOCK = 512
"""Bytes before the signature of a sealed HDF5 file."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_JSON = "seal"


class Damaged(UserError):
    """A sealed file does not hold the bytes that were written."""


def seal_hdf5(file: Path) -> None:
    """Seal an HDF5 file that was made with a user block of `USER_BLOCK` bytes."""
    with file.open("r+b") as stream:
        stream.write(BLANK)
    _seal(file, 0)


def write_parquet(file: Path, table: "pa.Table") -> None:
    """Write a sealed Parquet file with checksums of its pages, whole or not at all."""
    import pyarrow.parquet as pq

    with atomic.atomic_file(file) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
        with temporary.open("r+b") as stream:
            stream.seek(-8, os.SEEK_END)
            length = int.from_bytes(stream.read(4), "little")
            place = stream.seek(-length - 8, os.SEEK_END)
            footer = stream.read()
            stream.seek(place)
            stream.write(BLANK + footer)
        _seal(temporary, place)


def write_frame(file: Path, frame: "pd.DataFrame") -> None:
    """`write_parquet` of a pandas table."""
    import pyarrow as pa

    write_parquet(file, pa.Table.from_pandas(frame))


def read_frame(file: Path) -> "pd.DataFrame":
    """Read a Parquet file, sealed or not; raises Damaged as `verify` does."""
    import pandas as pd

    verify(file)
    return pd.read_parquet(file, page_checksum_verification=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write sealed JSON atomically."""
    text = json.dumps(content | {_JSON: BLANK.decode()}, indent=2)
    with atomic.atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _seal(temporary, temporary.read_bytes().index(BLANK))


def read_json(file: Path) -> tuple[Any, bool]:
    """What a JSON file holds, without its seal, and whether it has one.

    Raises Damaged as `verify` does, and ValueError for what is no JSON object.
    """
    sealed = verify(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    if sealed:
        content.pop(_JSON, None)
    return content, sealed


def verify(file: Path) -> bool:
    """Whether a file is sealed, and then whole; False where it never was, or was written anew.

    Raises Damaged if the file has changed in place since it was sealed, be it by one bit.
    """
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = _place(data)
        if place is None:
            return False
        stream.seek(place)
        found = stream.read(len(BLANK))
    if found != BLANK.replace(b"0" * 64, _digest(file, place)):
        raise Damaged(
            f"{file}: damaged: it has changed since it was written, and its checksum has not; "
            "restore a copy, or remove it and make it again"
        )
    return True


def _place(data: mmap.mmap) -> int | None:
    """Where the seal begins; None if there is none. One of its two ends may be damaged."""
    if data[: len(_HDF5)] == _HDF5:
        return None
    is_hdf5 = data[USER_BLOCK : USER_BLOCK + len(_HDF5)] == _HDF5
    end = USER_BLOCK if is_hdf5 else len(data)
    head, tail = data.find(HEAD, 0, end), data.find(TAIL, 0, end)
    if head >= 0:
        return head
    return max(0, tail - len(BLANK) + len(TAIL)) if tail >= 0 else None


def _seal(file: Path, place: int) -> None:
    digest = _digest(file, place)
    with file.open("r+b") as stream:
        stream.seek(place + len(HEAD))
        stream.write(digest)


def _digest(file: Path, place: int) -> bytes:
    """The SHA-256, in hexadecimal, of all bytes but those of the seal."""
    with file.open("rb") as stream:
        found = hashlib.sha256(stream.read(place))
        stream.seek(place + len(BLANK))
        return hashlib.file_digest(stream, lambda: found).hexdigest().encode()
