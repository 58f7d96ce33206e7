"""Files that claim, or would unpack to, more than a picture are refused in little memory."""

import io
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from deconfound.data.readers.image import read_image
from deconfound.errors import UserError

SIDE = 60_000
BLACK = zlib.compress(bytes(72))
"""Of a PNG of 8 × 8 pixels."""
LITTLE = 16 * 2**20
"""Bytes that refusing a file may take."""


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(side: int, data: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + end


def zeros(count: int) -> bytes:
    """`count` MiB of zeros, packed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(count)) + packer.flush()


def jpeg(side: int) -> bytes:
    """A JPEG of 8 × 8 pixels whose header says `side` × `side`."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def bmp(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "BMP")
    content = bytearray(stream.getvalue())
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


def tiff(side: int, data: bytes | None = None, compression: str | None = None) -> bytes:
    """A TIFF of 8 × 8 pixels whose header says `side` × `side`, its one strip replaced by data."""
    stream = io.BytesIO()
    zero = np.zeros((8, 8), np.uint8)
    tifffile.imwrite(stream, zero, compression=compression, photometric="minisblack", metadata=None)
    content = bytearray(stream.getvalue())
    stream.seek(0)
    wanted = {"ImageWidth": side, "ImageLength": side, "RowsPerStrip": side}
    if data is not None:
        wanted |= {"StripOffsets": len(content), "StripByteCounts": len(data)}
        content += data
    with tifffile.TiffFile(stream) as opened:
        for name, value in wanted.items():
            tag = opened.pages[0].tags[name]  # type: ignore[union-attr]
            short = tag.dtype == tifffile.DATATYPE.SHORT
            struct.pack_into("<H" if short else "<I", content, tag.valueoffset, value)
    return bytes(content)


def npy(shape: tuple[int, ...]) -> bytes:
    """A NPY file of a few bytes whose header says `shape`."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


CLAIMS = {
    "png": png(SIDE, zeros(1)),
    "jpg": jpeg(SIDE),
    "bmp": bmp(SIDE),
    "tif": tiff(SIDE),
    "deflate.tif": tiff(SIDE, zeros(1), "zlib"),
    "npy": npy((SIDE, SIDE)),
    "wide.npy": npy((2**62, 8)),
    "overflow.npy": npy((2**40, 2**40)),
    "negative.npy": npy((-8, -8)),
}


def refused(file: Path) -> str:
    """What reading a file says, which allocates next to nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read_image(file)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", CLAIMS)
def test_a_size_that_a_header_claims_is_refused_before_decoding(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CLAIMS[name])
    said = refused(tmp_path / name)
    assert "--max-pixels" in said or "damaged or cut short" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deflate.tif", lambda: tiff(8, zeros(64), "zlib")),
        ("lzma.tif", lambda: tiff(8, lzma.compress(bytes(2**26)), "lzma")),
        ("text.png", lambda: png(8, BLACK, chunk(b"zTXt", b"a\0\0" + zeros(64)))),
        ("profile.png", lambda: png(8, BLACK, chunk(b"iCCP", b"a\0\0" + zeros(64)))),
    ],
)  # fmt: skip
def test_what_unpacks_to_more_than_it_declares_is_refused(
    name: str, content: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content())
    refused(tmp_path / name)


def test_pixels_that_unpack_to_more_than_the_picture_cost_nothing(tmp_path: Path) -> None:
    """Pillow stops at the last row of a PNG."""
    (tmp_path / "a.png").write_bytes(png(8, zeros(64)))
    tracemalloc.start()
    try:
        assert not read_image(tmp_path / "a.png").any()
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["zlib", "lzma", None])
def test_whole_tiffs_of_strips_and_tiles_are_read(compression: str | None, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (2, 40, 24)).astype(np.uint16)
    for name, how in (("strips", {"rowsperstrip": 7}), ("tiles", {"tile": (16, 16)})):
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, values, compression=compression, photometric="minisblack", **how)
        np.testing.assert_array_equal(read_image(file), values)


@pytest.mark.parametrize("missing", range(1, 30))
def test_a_png_without_its_last_bytes_is_cut_short(missing: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-missing])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(whole + b"more")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), values[None])


def test_a_flipped_bit_of_png_pixels_is_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for place in range(8, len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError):
            read_image(tmp_path / "a.png")
