"""What a file says that it holds, compared with its size before it is read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
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
    texts = _repeated_texts(declared, max(ALWAYS, TIMES * path.stat().st_size))
    for name in texts:
        refuse_inflated(path, _text_bytes(path, name), f"texts in column {name!r}")


def _repeated_texts(declared: pq.FileMetaData, allowed: int) -> list[str]:
    """Columns of texts stored once and referred to, which may take more than `allowed` bytes."""
    most: dict[str, int] = {}
    for number in range(declared.num_row_groups):
        group = declared.row_group(number)
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page:
                each = chunk.total_uncompressed_size
                name = chunk.path_in_schema
                most[name] = most.get(name, 0) + chunk.num_values * each
    return [name for name, size in most.items() if size > allowed]


def _text_bytes(path: Path, name: str) -> int:
    """Bytes that the texts of one column take, each as often as it is referred to."""
    total = 0
    file = pq.ParquetFile(path, read_dictionary=[name])
    for batch in file.iter_batches(columns=[name]):
        for column in batch.columns:
            if pa.types.is_dictionary(column.type):
                lengths = pc.binary_length(column.dictionary)
                total += pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    return total


def refuse_inflated(path: Path, needed: int, said: str) -> None:
    """Raise UserError if `said`, `needed` bytes in memory, is more than a file's size allows."""
    size = path.stat().st_size
    if needed > max(ALWAYS, TIMES * size):
        raise UserError(
            f"{path}: declares {said}, {needed / 2**30:,.1f} GiB in a file of {size:,} bytes; "
            f"expected at most {ALWAYS / 2**30:g} GiB, or {TIMES} times the file: split it, or "
            "save it without compression, if it is meant"
        )
