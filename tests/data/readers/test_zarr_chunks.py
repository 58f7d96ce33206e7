"""OME-Zarr images that claim, or would unpack to, more than they should."""

import bz2
import gzip
import json
import lzma
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from deconfound.data.readers import zarr_chunks
from deconfound.data.readers.image import read_image
from deconfound.errors import UserError

zarr = pytest.importorskip("zarr", reason="needs the extra [zarr]")
numcodecs = pytest.importorskip("numcodecs")

LITTLE = 16 * 2**20
"""Bytes that refusing an image may take."""


def store(
    folder: Path, shape: tuple[int, ...], version: Literal[2, 3] = 2, **how: Any
) -> tuple[Path, Any]:
    """An image of channel, height and width, and its array."""
    group = zarr.open_group(folder, mode="w", zarr_format=version)
    array = group.create_array("0", shape=shape, dtype="uint16", **how)
    image = [{"axes": [{"name": axis} for axis in "cyx"], "datasets": [{"path": "0"}]}]
    group.attrs.update({"ome": {"multiscales": image}} if version == 3 else {"multiscales": image})
    return folder, array


def chunk_files(folder: Path) -> list[Path]:
    files = sorted(path for path in (folder / "0").rglob("*") if path.is_file())
    return [file for file in files if zarr_chunks.CHUNK_NAME.fullmatch(file.name)]


def refused(folder: Path, message: str, **limits: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            read_image(folder, **limits)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_description_claims_is_refused_before_it_is_read(
    tmp_path: Path, version: Literal[2, 3]
) -> None:
    for name, shape, chunks, message in (
        ("chunk", (1, 16, 16), (1, 60_000, 60_000), "3600000000 pixels in its chunks, more than"),
        ("count", (1, 8000, 8000), (1, 1, 1), r"64000000 chunks of \(1, 1, 1\), more than 65536"),
        ("shape", (1, 2**32, 2**32), (1, 16, 16), r"18446744073709551616 pixels .* --max-pixels"),
        ("pixels", (1, 9000, 9000), (1, 3000, 3000), "81000000 pixels over all channels"),
    ):
        folder, _ = store(tmp_path / name, shape, version, chunks=chunks)
        refused(folder, message)


def test_chunks_within_shards_count(tmp_path: Path) -> None:
    how = {"chunks": (1, 1, 1), "shards": (1, 8000, 8000)}
    refused(store(tmp_path / "f", (1, 8000, 8000), 3, **how)[0], "64000000 chunks")


PACKED = {
    "zlib": (lambda: numcodecs.Zlib(), zlib.compress),
    "gzip": (lambda: numcodecs.GZip(), gzip.compress),
    "bz2": (lambda: numcodecs.BZ2(), bz2.compress),
    "lzma": (lambda: numcodecs.LZMA(), lzma.compress),
    "lz4": (lambda: numcodecs.LZ4(), lambda data: numcodecs.LZ4().encode(data)),
    "zstd": (lambda: numcodecs.Zstd(), lambda data: numcodecs.Zstd().encode(data)),
    "blosc": (lambda: numcodecs.Blosc(), lambda data: numcodecs.Blosc().encode(data)),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_chunk_that_unpacks_to_more_than_its_shape(tmp_path: Path, name: str) -> None:
    codec, pack = PACKED[name]
    values = np.random.default_rng(0).integers(0, 2**16, (2, 20, 20)).astype(np.uint16)
    how = {"chunks": (1, 16, 16), "compressors": [codec()], "filters": [numcodecs.Delta("u2")]}
    folder, array = store(tmp_path / "f", values.shape, **how)
    array[...] = values
    (folder / "0" / ".DS_Store").write_bytes(b"no chunk")
    np.testing.assert_array_equal(read_image(folder), values)
    chunk_files(folder)[0].write_bytes(pack(bytes(2**23)))
    refused(folder, "a chunk 0.0.0 (that unpacks to more than the 512 bytes|of .* bytes, more)")


@pytest.mark.parametrize("start", [True, False])
def test_a_chunk_within_a_shard_that_unpacks_to_more(tmp_path: Path, start: bool) -> None:
    from zarr.codecs import BytesCodec, GzipCodec, ShardingCodec

    values = np.random.default_rng(0).integers(0, 2**16, (1, 64, 64)).astype(np.uint16)
    shard = ShardingCodec(
        chunk_shape=(1, 16, 16),
        codecs=[BytesCodec(), GzipCodec()],
        index_location="start" if start else "end",
    )
    how = {"chunks": (1, 32, 32), "serializer": shard, "compressors": None, "filters": None}
    folder, array = store(tmp_path / "f", values.shape, 3, **how)
    array[...] = values
    np.testing.assert_array_equal(read_image(folder), values)
    file, bomb = chunk_files(folder)[0], gzip.compress(bytes(2**20))
    content = bytearray(file.read_bytes())
    place = content.index(b"\x1f\x8b")
    content[place : place + len(bomb)] = bomb
    file.write_bytes(content[: len(file.read_bytes())])
    refused(folder, "a chunk 0 that unpacks to more than the 512 bytes")


def test_a_chunk_larger_than_it_can_be(tmp_path: Path) -> None:
    folder, array = store(tmp_path / "f", (1, 16, 16), chunks=(1, 16, 16), compressors=None)
    array[...] = 1
    with chunk_files(folder)[0].open("wb") as stream:
        stream.truncate(2**34)
    refused(folder, "a chunk 0.0.0 of 17179869184 bytes, more than its 512")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "|S1000000000"}, "expected integers or floats"),
        ({"dtype": [["a", "<u2"]]}, "expected integers or floats"),
        ({"filters": [{"id": "delta", "dtype": "|S99999999"}]}, "expected integers or floats"),
        ({"filters": [{"id": "gzip"}]}, "packed twice, by gzip and zlib"),
        ({"filters": [{"id": "pickle"}]}, "coded by pickle"),
        ({"chunks": [1, 0, 16]}, r"lengths \[1, 0, 16\]"),
        ({"shape": [1, -16, -16]}, r"lengths \[1, -16, -16\]"),
        ({"shape": [16, 16]}, "axes CYX"),
    ],
)
def test_descriptions_that_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    how = {"chunks": (1, 16, 16), "compressors": [numcodecs.Zlib()]}
    folder, array = store(tmp_path / "f", (1, 16, 16), **how)
    array[...] = 1
    file = folder / "0" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    refused(folder, message)


def test_a_description_that_is_no_description(tmp_path: Path) -> None:
    folder, _ = store(tmp_path / "f", (1, 16, 16))
    with (folder / ".zattrs").open("ab") as stream:
        stream.truncate(2**30)
    refused(folder, r"\.zattrs is missing or has more than 16777216 bytes")
