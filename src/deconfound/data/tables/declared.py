"""What a file says that it holds, compared with its size before it is read."""

from pathlib import Path

import pyarrow.parquet as pq

from deconfound.errors import UserError

ALWAYS = 2**30
"""Bytes that any file may take in memory."""
TIMES = 256
"""How many times its own bytes a larger file may take: more than any honest compression."""
VALUE_BYTES = 8


def refuse_huge_parquet(path: Path) -> None:
    """Raise UserError if a Parquet file declares more than an honest file of its size holds."""
    declared = pq.read_metadata(path)
    groups = (declared.row_group(number) for number in range(declared.num_row_groups))
    unpacked = sum(group.total_byte_size for group in groups)
    needed = max(unpacked, declared.num_rows * declared.num_columns * VALUE_BYTES)
    refuse_inflated(path, needed, f"{declared.num_rows:,} rows of {declared.num_columns:,} columns")


def refuse_inflated(path: Path, needed: int, said: str) -> None:
    """Raise UserError if `said`, `needed` bytes in memory, is more than a file's size allows."""
    size = path.stat().st_size
    if needed > max(ALWAYS, TIMES * size):
        raise UserError(
            f"{path}: declares {said}, {needed / 2**30:,.1f} GiB in a file of {size:,} bytes; "
            f"expected at most {ALWAYS / 2**30:g} GiB, or {TIMES} times the file: split it, or "
            "save it without compression, if it is meant"
        )
