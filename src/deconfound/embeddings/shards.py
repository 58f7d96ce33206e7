"""Embeddings as a directory of Parquet files, for screens too large for one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from deconfound.arrays import Floats
from deconfound.data.readers.blocks import Blocks, every_block
from deconfound.data.readers.embedded import INDEX, feature_names
from deconfound.data.screens.shards import Shard
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files import seal
from deconfound.files.checksums import sha256
from deconfound.runtime.device import free_memory

FORMAT_VERSION = 2
"""Since 2 the index is sealed."""
PREFIX = "Metadata_"
BYTES_A_CELL = 16
"""Bytes that a value of a table takes in memory, roughly."""


class ShardsIndex(BaseModel):
    """What `_embeddings.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    rows: int
    columns: dict[str, str]
    """For every column of the table, in order, its name in the files; it begins with Metadata_."""
    representations: dict[str, int]
    """Width of each representation; `feature_names` gives the names of its columns."""
    shards: tuple[Shard, ...]
    """In the order of the screen's rows."""
    made_of: str
    """Identity of the run, the screen and the options."""
    about: dict[str, Any]
    """As in an embeddings file."""


def metadata_names(columns: Sequence[str]) -> dict[str, str]:
    """The name of each column in the files: prefixed with Metadata_ unless it begins so."""
    found = {name: name for name in columns if name.startswith(PREFIX)}
    taken = set(found)
    for name in columns:
        if name not in found:
            stored = PREFIX + name
            while stored in taken:
                stored = PREFIX + stored
            found[name] = stored
            taken.add(stored)
    return {name: found[name] for name in columns}


def write_shard(file: Path, table: pd.DataFrame, representations: dict[str, Floats]) -> None:
    """Write rows of a table and their representations (B, D) as Parquet, one column a feature."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = metadata_names([str(name) for name in table.columns])
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    table = table.astype(dict.fromkeys(text, "string")).rename(columns=names)
    metadata = pa.Table.from_pandas(table, preserve_index=False)
    columns, named = list(metadata.columns), list(metadata.column_names)
    for name, values in representations.items():
        columns += [pa.array(column) for column in np.ascontiguousarray(values.T)]
        named += feature_names(name, values.shape[1])
    kept = list(metadata.column_names)
    pq.write_table(
        pa.table(columns, names=named),
        file,
        use_dictionary=kept,
        compression={name: "zstd" if name in kept else "none" for name in named},
        write_statistics=kept,
    )


def write_index(folder: Path, index: ShardsIndex) -> None:
    """Write `_embeddings.json`, sealed."""
    seal.write_json(folder / INDEX, index.model_dump(mode="json"))


def open_index(path: Path) -> ShardsIndex:
    """The index of a directory of embeddings.

    Raises UserError if the directory holds no embeddings, if the index is damaged or of another
    version, or if a file is missing or cut short.
    """
    import pyarrow.parquet as pq

    file = Path(path) / INDEX
    if not file.is_file():
        raise UserError(f"{path}: holds no embeddings (no {INDEX}); make some with `embed`")
    try:
        raw, sealed = seal.read_json(file)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version not in (1, FORMAT_VERSION):
            raise UserError(
                f"{file}: format version {version!r}; this release reads 1 and {FORMAT_VERSION}"
            )
        if version == FORMAT_VERSION and not sealed:
            raise ValueError("it has lost its checksum")
        index = ShardsIndex.model_validate(raw)
        Roles.model_validate(index.about["roles"])
        if index.rows != sum(shard.rows for shard in index.shards):
            raise ValueError("its rows are not those of its files")
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: damaged ({reason}); embed again") from error
    expected = [*index.columns.values()]
    for name, width in index.representations.items():
        expected += feature_names(name, width)
    for shard in index.shards:
        part = Path(path) / Path(shard.file).name
        try:
            found = pq.read_metadata(part)
        except Exception as error:  # pyarrow has no one exception for a damaged file
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{part}: missing or cut short ({reason}); remove {path} and embed again"
            ) from error
        if found.num_rows != shard.rows or found.schema.names != expected:
            raise _of_another(part, path)
    return index


def check_shards(path: Path) -> ShardsIndex:
    """`open_index`, and verify every file's checksum; raises UserError naming one that differs."""
    index = open_index(path)
    for shard in index.shards:
        if sha256(Path(path) / shard.file) != shard.sha256:
            raise _of_another(Path(path) / shard.file, path)
    return index


def read_shards(
    path: Path, blocks: Blocks = every_block
) -> tuple[pd.DataFrame, dict[str, Floats], dict[str, Any]]:
    """The table, those of the representations that `blocks` names, and what the index holds of the
    run, all in memory.

    Raises UserError as `check_shards` does, and if they need more memory than is free.
    """
    import pyarrow.parquet as pq

    index = check_shards(path)
    wanted = blocks(list(index.representations))
    widths = {name: index.representations[name] for name in wanted}
    needed = index.rows * (4 * sum(widths.values()) + BYTES_A_CELL * len(index.columns))
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{path}: {index.rows:,} embeddings need {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free; take a larger machine, or some of its Parquet files"
        )
    arrays = {name: np.empty((index.rows, width), np.float32) for name, width in widths.items()}
    tables = []
    start = 0
    for shard in index.shards:
        rows = slice(start, start + shard.rows)
        for name, values in arrays.items():
            features = pq.read_table(
                path / shard.file, columns=feature_names(name, values.shape[1]), memory_map=True
            )
            for place, column in enumerate(features.columns):
                values[rows, place] = column.to_numpy()
        metadata = list(index.columns.values())
        tables.append(pq.read_table(path / shard.file, columns=metadata, memory_map=True))
        start += shard.rows
    table = _joined(tables)
    table.columns = pd.Index(list(index.columns))
    return table, arrays, index.about


def _joined(tables: list[Any]) -> pd.DataFrame:
    """Concatenate Arrow tables; text becomes sorted categories."""
    import pyarrow as pa

    table: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas(
        strings_to_categorical=True, ignore_metadata=True
    )
    for name in table.select_dtypes("category"):
        named = table[name].cat
        table[name] = named.reorder_categories(sorted(named.categories))
    return table


def _of_another(part: Path, path: Path) -> UserError:
    return UserError(
        f"{part}: is not the file that {INDEX} names (another run's, or changed since); restore "
        f"it, or remove {path} and embed again"
    )
