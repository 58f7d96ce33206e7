"""The images of a screen in object storage, read by the ranges of bytes that rows lie in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deconfound.arrays import Images, Rows
from deconfound.data.screens.shards import Shard, head_of
from deconfound.errors import UserError
from deconfound.files.object_store import ObjectStore


@dataclass(frozen=True)
class RemoteImages:
    """Shards of NumPy files whose rows are read when they are asked for."""

    store: ObjectStore
    shards: Sequence[Shard]
    shape: tuple[int, ...]
    """Shape of one image, or of one profile."""
    dtype: np.dtype[Any]
    head: int = field(init=False)
    """Bytes before the first row of a shard."""

    def __post_init__(self) -> None:
        """Raise UserError if a shard does not begin as the screen says."""
        heads = [head_of(shard.rows, self.shape, self.dtype) for shard in self.shards]
        object.__setattr__(self, "head", len(heads[0]))
        spans = [(shard.file, 0, len(head)) for shard, head in zip(self.shards, heads, strict=True)]
        found = self.store.read_spans(spans)
        for shard, head, expected in zip(self.shards, found, heads, strict=True):
            if head != expected:
                raise UserError(
                    f"{self.store.url}/{shard.file}: does not hold {shard.rows} × {self.shape} "
                    f"{self.dtype}, as screen.json says; make the screen again"
                )

    def read(self, owner: Rows, local: Rows, out: Images) -> Images:
        """The images of rows `local` of shards `owner`, (B,) each, into `out`.

        Rows that follow each other in a shard are one request, and all requests are made together.
        """
        if not len(owner):
            return out
        order = np.lexsort((local, owner))
        owners, rows = owner[order], local[order]
        apart = (np.diff(owners) != 0) | ~np.isin(np.diff(rows), (0, 1))
        starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
        stops = np.append(starts[1:], len(rows))
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        spans = [
            (
                self.shards[owners[start]].file,
                self.head + int(rows[start]) * size,
                self.head + (int(rows[stop - 1]) + 1) * size,
            )
            for start, stop in zip(starts, stops, strict=True)
        ]
        parts = self.store.read_spans(spans)
        for start, stop, part in zip(starts, stops, parts, strict=True):
            images = np.frombuffer(part, self.dtype).reshape(-1, *self.shape)
            out[order[start:stop]] = images[rows[start:stop] - rows[start]]
        return out
