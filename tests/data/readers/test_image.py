import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


def png(path: Path, values: Pixels, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def png_header_only(width: int, height: int, depth: int, colour: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk


def test_grey_png(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16"):
        values = noise(5, 7, dtype=dtype)
        found = read_image(png(tmp_path / f"{dtype}.png", values))
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, values[None])


def test_colour_png_and_alpha(tmp_path: Path) -> None:
    values = noise(5, 7, 4)
    file = png(tmp_path / "rgba.png", values)
    np.testing.assert_array_equal(read_image(file), values[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(file, channels=4), values.transpose(2, 0, 1))
    grey = png(tmp_path / "la.png", values[..., 0], "LA")
    np.testing.assert_array_equal(read_image(grey), values[None, ..., 0])


def test_bilevel_png_becomes_black_and_white(tmp_path: Path) -> None:
    mask = noise(5, 7) > 127
    found = read_image(png(tmp_path / "1.png", mask.astype(np.uint8) * 255, "1", bits=1))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], np.where(mask, 255, 0))


def test_palette_png_becomes_its_colours_not_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[:, 0].tolist() == [[10, 200], [20, 100], [30, 0]]


def test_colour_png_of_16_bits_is_refused_not_truncated(tmp_path: Path) -> None:
    file = tmp_path / "rgb16.png"
    body = zlib.compress(b"\0" + bytes(range(6)))
    chunk = b"IDAT" + body
    file.write_bytes(
        png_header_only(1, 1, 16, 2)
        + struct.pack(">I", len(body))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IEND\xaeB`\x82"
    )
    with Image.open(file) as image:
        assert np.asarray(image).dtype == np.uint8
    with pytest.raises(UserError, match="16 bits a channel"):
        read_image(file)


def test_jpeg(tmp_path: Path) -> None:
    values = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    found = read_image(png(tmp_path / "c.jpg", values, quality=95))
    assert found.shape == (3, 8, 8)
    assert abs(found.astype(int) - values.transpose(2, 0, 1)).max() <= 3
    assert read_image(png(tmp_path / "g.jpg", values[..., 0])).shape == (1, 8, 8)
    with pytest.raises(UserError, match="CMYK"):
        read_image(png(tmp_path / "k.jpg", values, "CMYK"))


def test_bmp(tmp_path: Path) -> None:
    values = noise(5, 7, 3)
    found = read_image(png(tmp_path / "c.bmp", values))
    np.testing.assert_array_equal(found, values.transpose(2, 0, 1))
    found = read_image(png(tmp_path / "g.bmp", values[..., 0]))
    np.testing.assert_array_equal(found, values[None, ..., 0])


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "a.npy"
    values = noise(2, 6, 9).astype(dtype)
    for shown in (values, values.transpose(1, 2, 0)):
        np.save(file, shown)
        found = read_image(file)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, values)
    np.save(file, values[0])
    np.testing.assert_array_equal(read_image(file), values[:1])


def test_npy_whose_channels_could_be_first_or_last(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, noise(4, 6, 4))
    with pytest.raises(UserError, match=r"\(4, 6, 4\) .* --channels"):
        read_image(file)
    np.save(file, noise(6, 9, 4))
    assert read_image(file).shape == (4, 6, 9)
    assert read_image(file, channels=6).shape == (6, 9, 4)
    np.save(file, noise(2, 6, 9, 4))
    with pytest.raises(UserError, match=r"\(2, 6, 9, 4\); expected H × W"):
        read_image(file)


def test_npy_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(UserError, match=r"damaged .*[Pp]ython objects"):
        read_image(tmp_path / "a.npy")


def test_npy_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3, 8, 8))
    with pytest.raises(UserError, match="192 pixels over all channels"):
        read_image(tmp_path / "a.npy", max_pixels=191)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("bool", "uint8"),
        ("int8", "uint8"),
        ("int16", "uint16"),
        ("float16", "float32"),
        ("float64", "float32"),
    ],
)
def test_types_that_a_screen_does_not_store_are_converted(
    tmp_path: Path, given: str, stored: str
) -> None:
    values = np.arange(54).reshape(6, 9) % 2
    np.save(tmp_path / "a.npy", values.astype(given))
    found = read_image(tmp_path / "a.npy")
    assert found.dtype == np.dtype(stored)
    np.testing.assert_array_equal(found[0], values * (255 if given == "bool" else 1))


def test_huge_images_are_refused_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png_header_only(60_000, 60_000, 8, 0))
    with pytest.raises(UserError, match=r"3600000000 pixels .* --max-pixels"):
        read_image(file)
    for name in ("rgb.png", "rgb.jpg", "rgb.tif"):
        png(tmp_path / name, noise(8, 8, 3))
        assert read_image(tmp_path / name, max_pixels=8 * 8 * 3).shape == (3, 8, 8)
        with pytest.raises(UserError, match="192 pixels over all channels"):
            read_image(tmp_path / name, max_pixels=8 * 8 * 3 - 1)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"GIF89a", b"%PDF-1.4 and so on and so forth"):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UserError, match="not a PNG, JPEG, BMP, TIFF or NPY"):
            read_image(tmp_path / "x.png")


WHOLE: dict[str, bytes] = {}
for _name, _options in (
    ("png", {"format": "PNG"}),
    ("jpg", {"format": "JPEG", "quality": 90}),
    ("tif", {"format": "TIFF", "compression": "tiff_lzw"}),
    ("bmp", {"format": "BMP"}),
):
    _stream = io.BytesIO()
    Image.fromarray(noise(24, 24, 3)).save(_stream, **_options)
    WHOLE[_name] = _stream.getvalue()
for _name, _kind in (("strips.tif", {"rowsperstrip": 1}), ("pages.tif", {"metadata": None})):
    _stream = io.BytesIO()
    tifffile.imwrite(_stream, noise(3, 24, 24, dtype="uint16"), photometric="minisblack", **_kind)
    WHOLE[_name] = _stream.getvalue()
_stream = io.BytesIO()
np.save(_stream, noise(3, 24, 24, dtype="uint16"))
WHOLE["npy"] = _stream.getvalue()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.98])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, part: float) -> None:
    file = tmp_path / name
    file.write_bytes(WHOLE[name])
    whole = read_image(file)
    file.write_bytes(WHOLE[name][: int(part * len(WHOLE[name]))])
    try:
        found = read_image(file)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(found, whole[: len(found)])


@pytest.mark.parametrize("name", WHOLE)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_user_error(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, min(400, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path / name
    file.write_bytes(content)
    try:
        found = read_image(file, max_pixels=2**20)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.ndim == 3
        assert found.size <= 2**20
