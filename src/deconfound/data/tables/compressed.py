"""What kind of table a file is by its name, and the text of compressed ones."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from deconfound.data.tables.declared import TIMES, refuse_huge_parquet
from deconfound.errors import UserError

OPEN: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""What unpacks a file, by the end of its name."""
TEXT = (".csv", ".tsv", ".txt")
"""Ends of the names of tables of text."""
BYTE_ORDERS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_TEXT = 2 * 2**30
"""Bytes of text that a compressed table may unpack to."""
READ_BYTES = 2**20


def table_kind(path: Path) -> str:
    """The kind of table by the end of its name, in lower case: ".csv" for `cells.csv.gz`."""
    if path.suffix.lower() in OPEN:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in TEXT else "".join(path.suffixes[-2:]).lower()
    return path.suffix.lower()


def encoding_of(path: Path) -> str:
    """ "utf-16" for a table of text that begins with a byte order mark of it, else "utf-8-sig"."""
    opened: Any = OPEN.get(path.suffix.lower(), open)
    with opened(path, "rb") as stream:
        return "utf-16" if stream.read(2) in BYTE_ORDERS else "utf-8-sig"


def open_text(path: Path) -> TextIO:
    """Open a table of text, UTF-8 or UTF-16, unpacking it as it is read."""
    opened: Any = OPEN.get(path.suffix.lower(), open)
    stream: TextIO = opened(path, "rt", encoding=encoding_of(path), newline="")
    return stream


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of readers of a damaged table, of nearly every type, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = table_kind(path) in TEXT and isinstance(error, UnicodeError)
        remedy = "save it as UTF-8" if text else "check the file"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a table ({reason}); {remedy}") from error


def refuse_unfit_packing(path: Path) -> None:
    """Raise UserError if a table holds NUL bytes, or a compressed one is damaged or too large.

    Readers of text end a cell, or all, at a NUL byte. Packed text may unpack to `MAX_TEXT`, or to
    an eighth of it if that is more than an honest file of its size holds; Parquet as
    `refuse_huge_parquet` says.
    """
    if path.suffix.lower() == ".parquet":
        with readable(path):
            refuse_huge_parquet(path)
    if table_kind(path) not in TEXT:
        return
    packed = path.suffix.lower() in OPEN
    unpacked: Any = OPEN.get(path.suffix.lower(), open)
    found = 0
    most = min(MAX_TEXT, max(MAX_TEXT // 8, TIMES * path.stat().st_size))
    marked = False
    try:
        with unpacked(path, "rb") as stream:
            while part := stream.read(READ_BYTES):
                marked = marked or (not found and part.startswith(BYTE_ORDERS))
                if not marked and (place := part.find(b"\0")) >= 0:
                    raise UserError(
                        f"{path}: byte {found + place} (from 0) is NUL, as in text of two bytes a "
                        "letter without a mark; save it as UTF-8, or remove these bytes"
                    )
                found += len(part)
                if packed and found > most:
                    raise UserError(
                        f"{path}: unpacks to more than {most / 2**30:g} GiB of text; unpack it "
                        "yourself if it is meant to be so large, or save it as Parquet"
                    )
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be unpacked ({reason}); restore the file") from error
