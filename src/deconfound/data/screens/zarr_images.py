"""The images of a screen as one Zarr v3 array: zarr writes its shards, here they are read.

A shard begins with its index, the offset and length of each chunk, and a chunk is one zstd frame
with a checksum. Read by the index, random rows come some 30 times as fast as through zarr.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from deconfound.arrays import Images, Rows
from deconfound.data.screens.shards import Shard, ShardWriter
from deconfound.errors import UserError
from deconfound.files.atomic import discard, flush
from deconfound.files.checksums import sha256
from deconfound.files.local_files import LocalFiles
from deconfound.files.object_store import ObjectStore

ImageFormat = Literal["npy", "zarr"]
FOLDER = "images.zarr"
ZARR_JSON = f"{FOLDER}/zarr.json"
CHUNK_BYTES = 2**15
"""Most bytes of the images of a chunk, unpacked; one image may be larger."""
REQUEST_BYTES = 2**26
"""About the most bytes of chunks that are asked for as one."""
ENTRY, CHECK = 16, 4
"""Bytes of an entry of a shard's index, and of the checksum after the last one."""


class ZarrShards(BaseModel, frozen=True, extra="forbid"):
    """How the array is divided."""

    shard_rows: int
    """Images of every shard but the last, which may hold fewer."""
    chunk_rows: int
    """Images of a chunk; divides `shard_rows`. Beyond the last image a chunk holds zeros."""
    sha256: str
    """Of zarr.json."""


class ZarrWriter:
    """Writes NumPy files of images as the shards of a Zarr array in the same folder.

    Raises UserError where zarr, version 3 or later, is not installed.
    """

    def __init__(self) -> None:
        try:
            import zarr
            from zarr.codecs import ZstdCodec
        except ImportError as error:
            raise UserError(
                "--image-format zarr: zarr 3 is not installed; pip install 'deconfound[zarr]'"
            ) from error
        self._create, self._packed = zarr.create_array, ZstdCodec(level=3, checksum=True)

    def pack(self, file: Path, shard: Shard, number: int, shard_rows: int) -> Shard:
        """Write the images of `file` as the shard of this number, and flush it to the disk."""
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        name, start = _name(number), number * shard_rows
        target = file.parent / name
        discard(target)  # of a writer that was killed; zarr would read it first
        shape = (start + len(images), *images.shape[1:])
        self._array(file.parent, shape, images.dtype, shard_rows)[start:] = images
        flush(target)
        flush(target.parent)
        length = _index_bytes(shard_rows, chunk_rows(shard_rows, images.shape[1:], images.dtype))
        files = LocalFiles(file.parent)
        (head,) = files.read_spans([(name, 0, length)])
        (digest,) = _starts(files, [name], [head])
        return Shard(
            file=name,
            rows=shard.rows,
            sha256=sha256(target),
            pixels_sha256=shard.sha256,
            start_sha256=digest,
        )

    def finish(self, folder: Path, shards: ShardWriter) -> ZarrShards:
        """Describe the array of all images in zarr.json."""
        self._array(folder, (shards.rows, *shards.shape), shards.dtype, shards.capacity)
        return ZarrShards(
            shard_rows=shards.capacity,
            chunk_rows=chunk_rows(shards.capacity, shards.shape, shards.dtype),
            sha256=sha256(folder / ZARR_JSON),
        )

    def _array(
        self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], shard_rows: int
    ) -> Any:
        """The array of this shape; shards that are there stay."""
        discard(folder / ZARR_JSON)
        chunk = chunk_rows(shard_rows, shape[1:], dtype)
        shards: Any = {"shape": (shard_rows, *shape[1:]), "index_location": "start"}
        return self._create(
            folder / FOLDER,
            shape=shape,
            dtype=dtype,
            shards=shards,
            chunks=(chunk, *shape[1:]),
            compressors=[self._packed],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("image", "channel", "y", "x"),
            config={"write_empty_chunks": True},
        )


@dataclass(frozen=True)
class ZarrImages:
    """Shards of a Zarr array, in a folder or in object storage, read as rows are asked for."""

    store: ObjectStore | LocalFiles
    shards: Sequence[Shard]
    shape: tuple[int, ...]
    """Shape of one image."""
    dtype: np.dtype[Any]
    divided: ZarrShards
    _indices: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False)
    """(chunks, 2) start and stop of the chunks in the file, of the shards read so far."""

    def __post_init__(self) -> None:
        """Raise UserError for zarr.json that changed, and for a shard missing or misnamed."""
        for number, shard in enumerate(self.shards):
            if shard.file != _name(number):
                raise UserError(
                    f"{self.store.url}: shard {shard.file!r} is not {_name(number)}; make the "
                    "screen again"
                )
        self.store.read_spans([(shard.file, 0, ENTRY) for shard in self.shards])
        if self.store.sha256(ZARR_JSON) != self.divided.sha256:
            raise UserError(
                f"{self.store.url}/{ZARR_JSON}: checksum differs from screen.json; restore the "
                "file or make the screen again"
            )

    def read(self, owner: Rows, local: Rows, out: Images) -> Images:
        """The images of rows `local` of shards `owner`, (B,) each, into `out`.

        Chunks that follow each other in a shard are one request, and all requests are made
        together. Raises UserError for a chunk that is damaged, and for a shard that is another.
        """
        if not len(owner):
            return out
        rows, codec = self.divided.chunk_rows, pa.Codec("zstd")
        order = np.lexsort((local, owner))
        owners, chunks = owner[order], local[order] // rows
        firsts = np.concatenate([[True], (np.diff(owners) != 0) | (np.diff(chunks) != 0)])
        starts = np.flatnonzero(firsts)
        wanted = list(zip(owners[starts].tolist(), chunks[starts].tolist(), strict=True))
        self._look_up(sorted({shard for shard, _ in wanted}))
        for place, (number, packed) in enumerate(zip(wanted, self._packed(wanted), strict=True)):
            stop = starts[place + 1] if place + 1 < len(starts) else len(order)
            inside = order[starts[place] : stop]
            images = self._unpacked(codec, packed, *number)
            out[inside] = images[local[inside] - number[1] * rows]
        return out

    def _packed(self, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of chunks, (shard, chunk) each, in ascending order."""
        requests: list[list[int]] = []
        for shard, chunk in wanted:
            start, stop = self._indices[shard][chunk].tolist()
            begun = requests[-1] if requests else [-1, 0, 0]
            if begun[0] == shard and begun[2] == start and stop - begun[1] < REQUEST_BYTES:
                begun[2] = stop
            else:
                requests.append([shard, start, stop])
        spans = [(self.shards[shard].file, start, stop) for shard, start, stop in requests]
        found, parts = [], iter(zip(requests, self.store.read_spans(spans), strict=True))
        (shard, first, last), part = next(parts)
        for number, chunk in wanted:
            start, stop = self._indices[number][chunk].tolist()
            if number != shard or not first <= start < last:
                (shard, first, last), part = next(parts)
            found.append(memoryview(part)[start - first : stop - first])
        return found

    def _unpacked(self, codec: Any, packed: memoryview, shard: int, chunk: int) -> Images:
        try:
            found = np.frombuffer(codec.decompress(packed, self._chunk_bytes), self.dtype)
            return found.reshape(-1, *self.shape)
        except (pa.ArrowException, OSError, ValueError) as error:
            first = shard * self.divided.shard_rows + chunk * self.divided.chunk_rows
            raise self._damaged(shard, f"the chunk of rows {first:,} and after") from error

    @property
    def _chunk_bytes(self) -> int:
        return self.divided.chunk_rows * int(np.prod(self.shape)) * self.dtype.itemsize

    def _look_up(self, numbers: Sequence[int]) -> None:
        """Read and keep the indices of the shards that are not known yet."""
        new = [number for number in numbers if number not in self._indices]
        if not new:
            return
        length = _index_bytes(self.divided.shard_rows, self.divided.chunk_rows)
        names = [self.shards[one].file for one in new]
        heads = self.store.read_spans([(name, 0, length) for name in names])
        found = {number: self._index(number, head) for number, head in zip(new, heads, strict=True)}
        for number, start in zip(new, _starts(self.store, names, heads), strict=True):
            if self.shards[number].start_sha256 not in ("", start):
                raise self._damaged(number, "its start is not that of the shard in screen.json")
        self._indices.update(found)

    def _index(self, number: int, head: bytes) -> npt.NDArray[np.int64]:
        """(chunks, 2) start and stop of a shard's chunks, which must follow each other."""
        chunks = -(-self.shards[number].rows // self.divided.chunk_rows)
        index = np.frombuffer(head, "<u8").reshape(-1, 2)[:chunks]
        ordered = index[np.argsort(index[:, 0])]
        ends = np.concatenate([[len(head) + CHECK], ordered.sum(axis=1)])
        lengths = ordered[:, 1]
        possible = (lengths > 0) & (lengths < 2 * self._chunk_bytes + CHUNK_BYTES)
        if not possible.all() or (ordered[:, 0] != ends[:-1]).any():
            raise self._damaged(number, "its index")
        return np.stack([index[:, 0], index.sum(axis=1)], 1).astype(np.int64)

    def _damaged(self, shard: int, what: str) -> UserError:
        return UserError(
            f"{self.store.url}/{self.shards[shard].file}: damaged, {what}; restore the file or "
            "make the screen again"
        )


def chunk_rows(shard_rows: int, shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Images of a chunk: as many as `CHUNK_BYTES` hold and a shard can be divided by; 1 or more."""
    most = CHUNK_BYTES // (dtype.itemsize * int(np.prod(tuple(shape))))
    return next((rows for rows in range(most, 1, -1) if shard_rows % rows == 0), 1)


def _index_bytes(shard_rows: int, rows: int) -> int:
    return ENTRY * (shard_rows // rows)


def _starts(
    store: ObjectStore | LocalFiles, names: Sequence[str], heads: Sequence[bytes]
) -> list[str]:
    """The SHA-256 of the start of shards, of whose indices `heads` are the entries.

    Lengths of chunks differ from shard to shard, and where nothing can be packed, pixels do.
    """
    spans = []
    for name, head in zip(names, heads, strict=True):
        index, start = np.frombuffer(head, "<u8").reshape(-1, 2), len(head) + CHECK
        length = int(index[index[:, 0] == start][0, 1])
        spans.append((name, start, start + length))
    return [
        hashlib.sha256(head + chunk).hexdigest()
        for head, chunk in zip(heads, store.read_spans(spans), strict=True)
    ]


def _name(number: int) -> str:
    return f"{FOLDER}/c.{number}.0.0.0"
