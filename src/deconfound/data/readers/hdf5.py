"""An HDF5 file, checked before it is read: its sizes, its chunks, and that all lies in it."""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deconfound.data.tables.declared import ALWAYS, refuse_inflated
from deconfound.errors import UserError

MAX_CHUNKS = 2**24
"""Chunks of one data set; each costs a look, whether it is there or not."""
DEFLATE = 1
"""The number of HDF5's filter that packs by zlib, which has no limit when it unpacks."""
RATIO = 1032
"""How much zlib can unpack at most from one byte."""


def refuse_unfit_hdf5(path: Path, streamed: str | None = None) -> None:
    """Raise UserError if an HDF5 file declares or unpacks to more than one of its size may.

    The data set `streamed` is read a part at a time, so that only its chunks are bounded. Also
    raises it for data that lies in another file.
    """
    import h5py

    needed = 0
    with h5py.File(path) as file:
        for name, data in _datasets(file, path):
            shape = data.shape or ()
            said = f"{name} of {' × '.join(f'{side:,}' for side in shape)} {data.dtype}"
            if data.external or data.is_virtual:
                raise UserError(f"{path}: {name} lies in another file; write it into this one")
            if data.chunks is not None:
                _refuse_unfit_chunks(data, f"{path}: {said}")
            if name != streamed:
                needed += math.prod(shape) * _item_bytes(data)
                refuse_inflated(path, needed, said)


def _refuse_unfit_chunks(data: Any, what: str) -> None:
    size = math.prod(data.chunks) * _item_bytes(data)
    if size > ALWAYS:
        raise UserError(
            f"{what} in chunks of more than {ALWAYS / 2**30:g} GiB; write it with smaller chunks"
        )
    count = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
    if count > MAX_CHUNKS:
        raise UserError(
            f"{what} in {count:,} chunks, more than {MAX_CHUNKS:,}; write it with larger chunks"
        )
    pipeline = data.id.get_create_plist()
    filters = [pipeline.get_filter(place)[0] for place in range(pipeline.get_nfilters())]
    if filters.count(DEFLATE) > 1:
        raise UserError(f"{what} packed twice; pack it once")
    large: list[tuple[int, ...]] = []

    def note_large(stored: Any) -> None:
        if stored.size * RATIO > ALWAYS:
            large.append(stored.chunk_offset)

    if DEFLATE in filters:
        data.id.chunk_iter(note_large)
    for place in large:
        packed = data.id.read_direct_chunk(place)[1]
        if len(zlib.decompressobj().decompress(packed, size + 1)) > size:
            raise UserError(f"{what} has a chunk that unpacks to more than its {size:,} bytes")


def _item_bytes(data: Any) -> int:
    """Bytes of one value in the file, at most; of a text of any length, of the place it has."""
    kind, size = data.dtype.kind, int(data.dtype.itemsize)
    return 16 if kind == "O" else 2 * size if kind == "V" else size


def _datasets(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Name and data set of each in the file, once; links to other files are refused."""
    import h5py

    waiting, seen = [("", file)], set()
    while waiting:
        above, group = waiting.pop()
        for key in group:
            name = f"{above}{key}"
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UserError(f"{path}: {name} lies in another file; write it into this one")
            if isinstance(link, h5py.SoftLink):
                continue
            found = group[key]
            place = h5py.h5o.get_info(found.id).addr
            if place in seen:
                continue
            seen.add(place)
            if isinstance(found, h5py.Dataset):
                yield name, found
            elif isinstance(found, h5py.Group):
                waiting.append((f"{name}/", found))
