"""TIFF files as arrays: layouts, compressions, and what is refused."""

import io
import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.data.readers.image import read_image
from deconfound.errors import UserError


@pytest.fixture(autouse=True)
def quiet_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)


def noise(*shape: int, dtype: str = "uint8") -> Pixels:
    rng = np.random.default_rng(1)
    if dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "how",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "metadata": None},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {"photometric": "minisblack", "byteorder": ">", "compression": "zlib"},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}},
        {"photometric": "minisblack", "bigtiff": True, "rowsperstrip": 2},
    ],
)
def test_tiff_round_trip(tmp_path: Path, dtype: str, how: dict[str, Any]) -> None:
    for channels in (2, 4, 5):
        values = noise(channels, 6, 9, dtype=dtype)
        file = tmp_path / f"{channels}.ome.tif"
        tifffile.imwrite(file, values, **how)
        found = read_image(file)
        assert found.dtype == np.dtype(dtype)
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, values)


def test_tiff_of_one_plane(tmp_path: Path) -> None:
    values = noise(6, 9, dtype="uint16")
    for shape in ((6, 9), (1, 6, 9), (1, 1, 6, 9)):
        tifffile.imwrite(tmp_path / "t.tif", values.reshape(shape), photometric="minisblack")
        np.testing.assert_array_equal(read_image(tmp_path / "t.tif"), values[None])


def test_no_channel_of_a_tiff_passes_for_alpha(tmp_path: Path) -> None:
    values = noise(6, 9, 4, dtype="uint16")
    tifffile.imwrite(tmp_path / "t.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "t.tif"), values.transpose(2, 0, 1))


def test_tiff_compressed_by_lzw(tmp_path: Path) -> None:
    pages = noise(3, 6, 9, dtype="uint16")
    first, *others = (Image.fromarray(page) for page in pages)
    file = tmp_path / "lzw.tif"
    first.save(file, compression="tiff_lzw", save_all=True, append_images=others)
    np.testing.assert_array_equal(read_image(file), pages)


def test_big_endian_tiff_compressed_by_lzw(tmp_path: Path) -> None:
    values = noise(6, 9, dtype="uint16")
    stream = io.BytesIO()
    swapped = values.astype(">u2").view(np.uint8)
    Image.fromarray(swapped).save(stream, "TIFF", compression="tiff_lzw")
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as tiff:
        page: Any = tiff.pages.first
        strip = stream.getvalue()[page.dataoffsets[0] :][: page.databytecounts[0]]
    # Tag and value: width, height, bits, LZW, grey, offset, samples, rows per strip, bytes.
    tags = [(256, 9), (257, 6), (258, 16), (259, 5), (262, 1), (273, 126), (277, 1), (278, 6)]
    tags.append((279, len(strip)))
    header = struct.pack(">2sHIH", b"MM", 42, 8, len(tags))
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    file = tmp_path / "t.tif"
    file.write_bytes((header + entries).ljust(126, b"\0") + strip)
    found = read_image(file)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values[None])


def test_tiff_with_a_strip_never_written(tmp_path: Path) -> None:
    file = tmp_path / "t.tif"
    values = noise(8, 9, dtype="uint16")
    tifffile.imwrite(file, values, photometric="minisblack", rowsperstrip=2, metadata=None)
    with tifffile.TiffFile(file) as tiff:
        counts = tiff.pages.first.tags["StripByteCounts"]
    width = {tifffile.DATATYPE.SHORT: 2, tifffile.DATATYPE.LONG: 4}[counts.dtype]
    content = bytearray(file.read_bytes())
    content[counts.valueoffset : counts.valueoffset + width] = bytes(width)
    file.write_bytes(content)
    with pytest.raises(UserError, match="strips never written"):
        read_image(file)


@pytest.mark.parametrize(
    ("shape", "compression"), [((6, 9, 3), "LZW"), ((6, 9), "LERC"), ((6, 9), "JPEGXL")]
)
def test_compression_that_nothing_here_reads_names_the_remedy(
    tmp_path: Path, shape: tuple[int, ...], compression: str
) -> None:
    file = tmp_path / "t.tif"
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(file, noise(*shape, dtype="uint16"), photometric=kind, compression="zlib")
    with tifffile.TiffFile(file) as tiff:
        place = tiff.pages.first.tags["Compression"].valueoffset
    content = bytearray(file.read_bytes())
    content[place : place + 2] = tifffile.COMPRESSION[compression].to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{compression}, which needs .* pip install imagecodecs"):
        read_image(file)


def test_bilevel_tiff(tmp_path: Path) -> None:
    mask = noise(5, 16) > 127
    tifffile.imwrite(tmp_path / "1.tif", mask, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "1.tif")[0], np.where(mask, 255, 0))


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        (noise(2, 3, 6, 9), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "axes ZCYX"),
        (noise(6, 9), {"photometric": "miniswhite"}, "MINISWHITE"),
        (-1 - noise(6, 9).astype(np.int16), {}, "negative pixels of type int16"),
        (noise(6, 9).astype(np.int32), {}, "pixels of type int32"),
        (np.full((6, 9), 1e300), {}, "not finite"),
        (np.full((6, 9), np.nan, np.float32), {}, "not finite"),
    ],
)
def test_tiff_refused(tmp_path: Path, values: Pixels, how: dict[str, Any], message: str) -> None:
    tifffile.imwrite(tmp_path / "t.tif", values, **how)
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "t.tif")


def test_tiff_of_two_series_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "t.tif") as writer:
        writer.write(noise(6, 9), photometric="minisblack")
        writer.write(noise(3, 4), photometric="minisblack")
    with pytest.raises(UserError, match="2 image series"):
        read_image(tmp_path / "t.tif")


def test_ome_tiff_never_opens_another_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "secret.tif", noise(4, 4), photometric="minisblack")
    plane = (
        '<TiffData FirstC="{0}" IFD="0" PlaneCount="1"><UUID FileName="{1}">u{0}</UUID></TiffData>'
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="u0"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="4" SizeY="4" SizeC="2" SizeZ="1" SizeT="1">'
        + plane.format(0, "sub/a.tif")
        + plane.format(1, "../secret.tif")
        + "</Pixels></Image></OME>"
    )
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a.tif"
    tifffile.imwrite(file, np.zeros((4, 4), np.uint8), description=xml, metadata=None)
    with tifffile.TiffFile(file) as tiff:
        assert tiff.is_ome
    try:
        found = read_image(file)
    except UserError:
        return
    assert not found.any()


def test_a_cut_tiff_of_several_pages_says_nothing_beside_the_error(tmp_path: Path) -> None:
    file = tmp_path / "cut.tif"
    tifffile.imwrite(file, np.ones((3, 24, 24), np.uint16), photometric="minisblack")
    file.write_bytes(file.read_bytes()[:-900])
    lines = (
        "import pathlib, sys",
        "from deconfound.data.readers.image import read_image",
        "from deconfound.errors import UserError",
        "try: read_image(pathlib.Path(sys.argv[1]))",
        "except UserError: print('refused')",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
