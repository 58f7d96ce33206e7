"""The chunks of a Zarr array on the disk, checked before any is decoded."""

import bz2
import gzip
import io
import lzma
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from deconfound.data.readers.bounds import refuse_huge
from deconfound.errors import UserError

MAX_CHUNKS = 2**16
"""Chunks of one image; each costs a look on the disk, whether it is there or not."""
CHUNK_NAME = re.compile(r"c|(c\.)?\d+(\.\d+)*")
"""The last part of a chunk's key."""
MISSING = 2**64 - 1
"""Offset in a shard's index of a chunk that is not there."""
_UNPACKED: dict[str, Callable[[bytes, int, Mapping[str, Any]], int]] = {
    "blosc": lambda data, _most, _config: int.from_bytes(data[4:8], "little"),
    "bz2": lambda data, most, _config: len(bz2.BZ2File(io.BytesIO(data)).read(most + 1)),
    "gzip": lambda data, most, _config: len(gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)),
    "lz4": lambda data, _most, _config: int.from_bytes(data[:4], "little"),
    "lzma": lambda data, most, config: len(_lzma_file(data, config).read(most + 1)),
    "zlib": lambda data, most, _config: len(zlib.decompressobj().decompress(data, most + 1)),
    "zstd": lambda data, most, _config: len(
        pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(most + 1)
    ),
}
"""The bytes that a chunk says it unpacks to, or those found, counted to just beyond `most`."""
# Anything else is refused: some codecs, pickle among them, run code from the data.
_KNOWN = {"bytes", "crc32c", "delta", "endian", "sharding_indexed", "shuffle", "transpose"}
_KNOWN |= set(_UNPACKED)


class Array(NamedTuple):
    """What the description of a Zarr array says, as far as memory and time depend on it."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    """The shape of what one file holds, a shard where chunks lie in shards."""
    inner: tuple[int, ...] | None
    """The shape of a chunk within a shard."""
    coded: tuple[tuple[str, Mapping[str, Any]], ...]
    """Name and configuration of the codecs of a chunk, in the order of writing."""
    index_first: bool
    """Whether the index of a shard lies at its beginning."""
    index_checked: bool
    """Whether a checksum follows the index of a shard."""
    itemsize: int

    @property
    def chunks(self) -> int:
        """Chunks of the whole array, those that are not there too."""
        files = math.prod(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        return files * self.chunks_in_file

    @property
    def chunks_in_file(self) -> int:
        """Chunks of one file, more than 1 in a shard."""
        if self.inner is None:
            return 1
        return math.prod(c // i for c, i in zip(self.chunk, self.inner, strict=True))

    @property
    def chunk_pixels(self) -> int:
        """Pixels of one chunk."""
        return math.prod(self.inner or self.chunk)


def described(json: Mapping[str, Any]) -> Array:
    """The array of a `zarr.json` or `.zarray`.

    Raises UserError for another grid of chunks, values that are no numbers, a codec that could run
    code, and codecs whose unpacked size cannot be foreseen.
    """
    inner, codecs = None, _codecs(json.get("codecs") or [])
    if json["zarr_format"] == 3:
        grid = json["chunk_grid"]
        if grid["name"] != "regular":
            raise UserError(f"an OME-Zarr array of {grid['name']} chunks; write it with equal ones")
        chunk, kind = _shape(grid["configuration"]["chunk_shape"]), json["data_type"]
    else:
        chunk, kind = _shape(json["chunks"]), json["dtype"]
        codecs = _codecs([*(json.get("filters") or []), *filter(None, [json.get("compressor")])])
    index_first = index_checked = False
    shards = [config for name, config in codecs if name == "sharding_indexed"]
    if shards:
        inner, index_first = (
            _shape(shards[0]["chunk_shape"]),
            shards[0].get("index_location") == "start",
        )
        index = [name for name, _ in _codecs(shards[0].get("index_codecs") or [])]
        index_checked = "crc32c" in index
        beside = {name for name, _ in codecs} - {"sharding_indexed", "transpose"}
        codecs = _codecs(shards[0]["codecs"])
        again = any(name == "sharding_indexed" for name, _ in codecs)
        if beside or again or len(shards) > 1 or set(index) - {"bytes", "endian", "crc32c"}:
            raise UserError("an OME-Zarr array of shards that are coded again; write plain shards")
        if len(inner) != len(chunk) or any(c % i for c, i in zip(chunk, inner, strict=True)):
            raise UserError(f"an OME-Zarr array of shards {chunk} with chunks {inner}; mend it")
    unpacking = [name for name, _ in codecs if name in _UNPACKED]
    if len(unpacking) > 1:
        raise UserError(
            f"an OME-Zarr array packed twice, by {' and '.join(unpacking)}; pack it once"
        )
    sizes = [np.dtype(kind) if isinstance(kind, str) else np.dtype(object)]
    sizes += [
        np.dtype(c[k]) for name, c in codecs if name == "delta" for k in c if k.endswith("type")
    ]
    if any(size.kind not in "buif" for size in sizes):
        raise UserError(f"an OME-Zarr array of type {kind}; expected integers or floats")
    return Array(
        _shape(json["shape"]),
        chunk,
        inner,
        tuple(codecs),
        index_first,
        index_checked,
        max(size.itemsize for size in sizes),
    )


def refuse_unfit_chunks(folder: Path, array: Array, max_pixels: int) -> None:
    """Raise UserError if reading `array`, whose chunks lie in `folder`, takes more than its size.

    That is for more than `max_pixels` in all its chunks or more than `MAX_CHUNKS` of them, there or
    not, and for a chunk on the disk that would unpack to more than its shape.
    """
    if array.chunks > MAX_CHUNKS:
        raise UserError(
            f"an OME-Zarr image {array.shape} in {array.chunks} chunks of "
            f"{array.inner or array.chunk}, more than {MAX_CHUNKS}; write it with larger chunks"
        )
    refuse_huge(array.chunks * array.chunk_pixels, max_pixels, "pixels in its chunks")
    most = array.chunk_pixels * array.itemsize
    for file in all_below(folder):
        state = file.stat()
        if not CHUNK_NAME.fullmatch(file.name) or stat.S_ISDIR(state.st_mode):
            continue
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{file.name} among the chunks is no file; remove it")
        size = state.st_size
        if size > (most + most // 16 + 2**10) * array.chunks_in_file:  # coding may add a little
            raise UserError(
                f"a chunk {file.name} of {size} bytes, more than its {most}; restore it"
            )
        data = file.read_bytes()
        for start, end in _chunks(array, data):
            for name, config in reversed(array.coded):
                if name == "crc32c":
                    end -= 4
                elif name in _UNPACKED:
                    if _UNPACKED[name](data[start:end], most, config) > most:
                        raise UserError(
                            f"a chunk {file.name} that unpacks to more than the {most} bytes it "
                            "declares; drop the row"
                        )
                    break


def all_below(folder: Path) -> Iterator[Path]:
    """`folder` and every folder and file below it, links followed, each folder once.

    A folder comes before what lies in it, which is looked up only when it is asked for.
    """
    waiting, seen = [os.path.realpath(folder)], set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        yield Path(place)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(os.path.realpath(entry.path))
                else:
                    yield Path(entry.path)


def _shape(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value > 0 for value in values):
        raise UserError(
            f"an OME-Zarr array with the lengths {list(values)}; expected integers above 0"
        )
    return tuple(values)


def _codecs(given: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and configuration of codecs of either version of the format."""
    codecs = []
    for codec in given:
        name = str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
        if name not in _KNOWN or codec.get("location") == "start":
            raise UserError(f"an OME-Zarr array coded by {name}; write it with blosc, zstd or gzip")
        codecs.append((name, codec.get("configuration", codec)))
    return codecs


def _lzma_file(data: bytes, config: Mapping[str, Any]) -> lzma.LZMAFile:
    how = config.get("format", lzma.FORMAT_XZ)
    return lzma.LZMAFile(io.BytesIO(data), format=how, filters=config.get("filters"))


def _chunks(array: Array, data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of every chunk in a file."""
    if array.inner is None:
        yield 0, len(data)
        return
    length, check = 16 * array.chunks_in_file, 4 * array.index_checked
    index = data[:length] if array.index_first else data[len(data) - length - check :][:length]
    for offset, count in np.frombuffer(index, "<u8").reshape(-1, 2).tolist():
        if offset != MISSING:
            yield offset, offset + count
