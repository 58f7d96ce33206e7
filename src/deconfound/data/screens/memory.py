"""A screen in memory: opened as one on disk is, of arrays, with nothing written."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deconfound.arrays import Images
from deconfound.data.screens.screen import FORMAT_VERSION, Screen, ScreenIndex, in_order
from deconfound.data.screens.shards import Shard, head_of, rows_of_shard, shard_name
from deconfound.data.screens.writer import SHARD_BYTES, settled
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError


def screen_in_memory(
    images: Images,
    table: pd.DataFrame,
    roles: Roles,
    channels: Sequence[str],
    name: str,
    provenance: dict[str, Any],
) -> Screen:
    """The screen that writing and opening the same would give, with the same identity.

    `images` are (N, C, H, W), uint8, uint16 or float32, or profiles (N, D) float32; they are kept
    and not copied, so they must not change. Its path is "NAME in memory", where no file is. Raises
    UserError for a column of the roles that is not there, and one of mixed types.
    """
    images = np.ascontiguousarray(images)
    where = f"{name} in memory"
    written, roles, notes = settled(table, roles, where)
    table, digest = _written(written, where)
    capacity = rows_of_shard(images.shape[1:], images.dtype, SHARD_BYTES)
    parts = [images[start : start + capacity] for start in range(0, len(images), capacity)]
    starts = np.arange(0, len(images), capacity, dtype=np.int64)
    index = ScreenIndex(
        format_version=FORMAT_VERSION,
        name=name,
        channels=tuple(channels),
        dtype=str(images.dtype),
        image_shape=images.shape[1:],
        roles=in_order(roles, table),
        rows=len(images),
        table_sha256=digest,
        shards=tuple(_shard(number, part) for number, part in enumerate(parts)),
        provenance=provenance | ({"unified": notes} if notes else {}),
    )
    return Screen(Path(where), index, table, tuple(parts), starts, (0,) * len(parts))


def with_table(screen: Screen, table: pd.DataFrame, roles: Roles) -> Screen:
    """The same images with another table, a row for each, and other roles; nothing is written.

    Raises UserError as `screen_in_memory` does.
    """
    written, roles, _ = settled(table, roles, str(screen.path))
    table, digest = _written(written, str(screen.path))
    update = {"roles": in_order(roles, table), "table_sha256": digest, "sha256": ""}
    return replace(screen, table=table, index=screen.index.model_copy(update=update))


def _written(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, str]:
    """The table as it is read back from a screen, and the checksum of its file."""
    try:
        content = table.to_parquet(None)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: a column of the table cannot be stored ({reason}); write one text or number "
            "a row, or leave the column out"
        ) from error
    return pd.read_parquet(io.BytesIO(content)), hashlib.sha256(content).hexdigest()


def _shard(number: int, images: Images) -> Shard:
    found = hashlib.sha256(head_of(len(images), images.shape[1:], images.dtype))
    found.update(images.reshape(-1).view(np.uint8).data)
    return Shard(file=shard_name(number), rows=len(images), sha256=found.hexdigest())
