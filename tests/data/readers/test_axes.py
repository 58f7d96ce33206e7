"""Which axis of a file is what, and what becomes of stacks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.data.readers.image import image_and_axes, read_image
from deconfound.errors import UserError


def noise(*shape: int, dtype: str = "uint16") -> Pixels:
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def tiff(folder: Path, values: Pixels, **how: Any) -> Path:
    tifffile.imwrite(folder / "a.tif", values, photometric="minisblack", **how)
    return folder / "a.tif"


@pytest.mark.parametrize("how", [{}, {"metadata": None}, {"imagej": True}, {"ome": True}])
def test_height_width_channels_without_axes(tmp_path: Path, how: dict[str, Any]) -> None:
    """Writers call the first axis pages, or even channels; as many names as the last has decide."""
    values = noise(16, 16, 5)
    file = tiff(tmp_path, values, **how)
    found, taken = image_and_axes(file, channels=5)
    np.testing.assert_array_equal(found, values.transpose(2, 0, 1))
    assert taken.taken == "YXC"
    assert taken.guessed == ("imagej" in how or "ome" in how)
    if taken.guessed:
        assert image_and_axes(file)[1].guessed
        return
    with pytest.raises(UserError, match=r"axes [QI]YX \(16, 16, 5\) .* both be .* --channels"):
        read_image(file)
    np.testing.assert_array_equal(read_image(file, channels=16), values)


@pytest.mark.parametrize("how", [{}, {"metadata": None}])
def test_pages_that_a_file_does_not_name(tmp_path: Path, how: dict[str, Any]) -> None:
    values = noise(5, 16, 16)
    file = tiff(tmp_path, values, **how)
    for channels in (None, 5, 16):
        found, taken = image_and_axes(file, channels=channels)
        np.testing.assert_array_equal(found, values)
        assert (taken.taken, taken.guessed) == ("CYX", channels != 5)
    found, taken = image_and_axes(file, channels=1, project="max")
    np.testing.assert_array_equal(found, values.max(0, keepdims=True))
    assert taken.guessed
    for channels in (None, 8):
        with pytest.raises(UserError, match="both be the channels"):
            read_image(tiff(tmp_path, noise(8, 8, 8)), channels=channels)


@pytest.mark.parametrize("how", [{"ome": True}, {"imagej": True}, {}])
@pytest.mark.parametrize("axes", ["ZCYX", "TCYX", "ZYX", "TZCYX", "CZYX"])
def test_stacks_need_a_projection(tmp_path: Path, how: dict[str, Any], axes: str) -> None:
    if "imagej" in how and axes == "CZYX":
        return
    lengths = {"T": 2, "Z": 5, "C": 3, "Y": 8, "X": 9}
    values = noise(*(lengths[axis] for axis in axes))
    file = tiff(tmp_path, values, metadata={"axes": axes}, **how)
    with pytest.raises(UserError, match=rf"axes {axes} .* --project max, mean or middle"):
        read_image(file)
    stacked = tuple(axes.index(axis) for axis in axes if axis in "ZT")
    middle = values
    for axis in reversed(stacked):
        middle = middle.take(lengths[axes[axis]] // 2, axis=axis)
    expected = {
        "max": values.max(stacked),
        "mean": np.rint(values.mean(stacked)).astype(np.uint16),
        "middle": middle,
    }
    for project, wanted in expected.items():
        found, taken = image_and_axes(file, project=project)
        tolerance = 1 if len(stacked) > 1 and project == "mean" else 0
        np.testing.assert_allclose(found, wanted.reshape(-1, 8, 9), atol=tolerance)
        assert found.dtype == np.uint16
        assert not taken.guessed
        assert taken.taken == axes.replace("T", "").replace("Z", "")
        assert f"{project} over" in taken.why


def test_planes_are_channels_only_where_as_many_are_named(tmp_path: Path) -> None:
    values = noise(4, 8, 9)
    file = tiff(tmp_path, values, imagej=True, metadata={"axes": "ZYX"})
    found, taken = image_and_axes(file, channels=4)
    np.testing.assert_array_equal(found, values)
    assert taken.guessed
    with pytest.raises(UserError, match="--project"):
        read_image(file, channels=1)


def test_a_stack_counts_every_plane(tmp_path: Path) -> None:
    file = tiff(tmp_path, noise(4, 8, 9), ome=True, metadata={"axes": "ZYX"})
    with pytest.raises(UserError, match="288 pixels over all channels, more than 287"):
        read_image(file, project="max", max_pixels=287)


def test_the_mean_of_floats_keeps_fractions(tmp_path: Path) -> None:
    values = np.array([[[1.0, 2.0]], [[2.0, 4.0]]], np.float32)
    file = tiff(tmp_path, values, ome=True, metadata={"axes": "ZYX"})
    assert read_image(file, project="mean").tolist() == [[[1.5, 3.0]]]


def test_transparency_is_said(tmp_path: Path) -> None:
    colour = Image.fromarray(noise(6, 6, 4, dtype="uint8"))
    palette = Image.fromarray(noise(6, 6, dtype="uint8") % 2, mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 0])
    for name, image, options, dropped in (
        ("rgba", colour, {}, True),
        ("rgb", colour.convert("RGB"), {}, False),
        ("la", colour.convert("LA"), {}, True),
        ("p", palette, {}, False),
        ("tp", palette, {"transparency": 0}, True),
        ("tl", colour.convert("L"), {"transparency": 7}, True),
    ):
        image.save(tmp_path / f"{name}.png", **options)
        assert image_and_axes(tmp_path / f"{name}.png")[1].alpha_dropped == dropped, name
    for name, channels in (("rgba", 4), ("la", 2)):
        found, taken = image_and_axes(tmp_path / f"{name}.png", channels=channels)
        assert (len(found), taken.alpha_dropped) == (channels, False)


def test_grey_with_alpha_of_16_bits_is_refused_not_truncated(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 6))
    Image.fromarray(noise(6, 6, dtype="uint8")).convert("LA").save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[24] = 16
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="16 bits a channel with colour or alpha"):
        read_image(tmp_path / "a.png")


def test_arrays_are_guessed_by_the_shorter_axis(tmp_path: Path) -> None:
    values = noise(3, 8, 9)
    for shown, letters in ((values, "CYX"), (values.transpose(1, 2, 0), "YXC")):
        np.save(tmp_path / "a.npy", shown)
        for channels, guessed in ((None, True), (3, False)):
            found, taken = image_and_axes(tmp_path / "a.npy", channels=channels)
            np.testing.assert_array_equal(found, values)
            assert (taken.taken, taken.guessed) == (letters, guessed)


@pytest.mark.parametrize("version", [2, 3])
def test_stacks_of_ome_zarr(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr", reason="needs the extra [zarr]")
    values = noise(2, 3, 5, 8, 9)
    for names in ("tczyx", ["time", "channel", "z", "y", "x"]):
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        group = zarr.open_group(tmp_path / "f", mode="w", zarr_format=version)
        group.create_array("0", shape=values.shape, dtype="uint16")[...] = values
        kinds = {"t": "time", "c": "channel"}
        axes = [{"name": name, "type": kinds.get(name[0], "space")} for name in names]
        image = [{"axes": axes, "datasets": [{"path": "0"}]}]
        group.attrs.update(
            {"ome": {"multiscales": image}} if version == 3 else {"multiscales": image}
        )
        with pytest.raises(UserError, match=r"axes TCZYX \(2, 3, 5, 8, 9\), .* --project max"):
            read_image(tmp_path / "f")
        found = read_image(tmp_path / "f", project="max")
        np.testing.assert_array_equal(found, values.max((0, 2)))
