"""Embeddings that deconfound wrote, as a table of features: their names, roles and table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.readers.features import FeatureTable
from deconfound.data.tables.table import ROW_NAME, Roles
from deconfound.errors import UserError
from deconfound.files import seal
from deconfound.files.checksums import sha256

OWN = "deconfound"
"""Key of uns under which an embeddings file says what it is."""
ADDED = "added"
"""Names of the columns of obs that are there for other programs and no part of the table."""
INDEX = "_embeddings.json"
"""Readers of a directory of Parquet files skip names that begin with an underscore."""


def main_block(names: Sequence[str]) -> str:
    """The block that is X: content if there is any, else representation, else the first."""
    usual = ("content", "representation", "X_content", "X_representation")
    return next((name for name in usual if name in names), names[0])


def feature_names(name: str, width: int) -> list[str]:
    """Columns of a representation: content_000, content_001 …"""
    digits = len(str(max(0, width - 1)))
    return [f"{name}_{place:0{digits}d}" for place in range(width)]


def own_names(key: str, width: int) -> list[str]:
    """`feature_names` of the block that obsm holds as `key`, X_content say."""
    return feature_names(key.removeprefix("X_"), width)


def own_table(obs: pd.DataFrame, described: Mapping[str, Any]) -> pd.DataFrame:
    """The screen's table in `obs` of an embeddings file, without what other programs need.

    `described` is `uns["deconfound"]`; raises ValueError if it is damaged.
    """
    table: pd.DataFrame = obs.drop(
        columns=json.loads(str(described.get(ADDED, "[]"))), errors="ignore"
    )
    if table.index.name == ROW_NAME:
        table = table.assign(**{ROW_NAME: table.index.astype(str).astype("category")})
    return table.reset_index(drop=True)


def own_roles(described: Mapping[str, Any]) -> Roles:
    """The roles of the columns; raises ValueError if `described` is damaged."""
    return Roles.model_validate(json.loads(str(described["json"]))["roles"])


class EmbeddedDirectory(FeatureTable):
    """A directory of Parquet files that `embed` wrote; the features are those of its main block.

    Another block is asked for by the names of its columns, such as style_*.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            index, _ = seal.read_json(path / INDEX)
            self._stored: dict[str, str] = dict(index["columns"])
            widths: dict[str, int] = dict(index["representations"])
            self._shards = [(path / Path(one["file"]).name, one) for one in index["shards"]]
            self.roles = Roles.model_validate(index["about"]["roles"])
        except (KeyError, TypeError, ValueError, RecursionError, OSError) as error:
            raise UserError(f"{path / INDEX}: damaged; embed again") from error
        for file, shard in self._shards:
            if not file.is_file() or sha256(file) != shard["sha256"]:
                raise UserError(
                    f"{file}: missing, or not the file that {INDEX} names; restore it, or embed "
                    "again"
                )
        blocks = {name: feature_names(name, width) for name, width in widths.items()}
        self.features = blocks[main_block(list(blocks))]
        self.columns = [*self._stored, *(name for names in blocks.values() for name in names)]

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = {self._stored[name]: name for name in columns if name in self._stored}
        parts = [pq.read_table(file, columns=list(kept)) for file, _ in self._shards]
        whole = pa.concat_tables(parts, promote_options="permissive")
        table: pd.DataFrame = whole.to_pandas(ignore_metadata=True)[list(kept)]
        return table.rename(columns=kept)

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        import pyarrow.parquet as pq

        for file, _ in self._shards:
            for part in pq.ParquetFile(file).iter_batches(columns=list(columns)):
                frame = part.to_pandas(ignore_metadata=True)[list(columns)]
                yield frame.to_numpy(dtype=np.float32)
