import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from deconfound.arrays import Pixels
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.readers.image import read_image
from deconfound.errors import UserError

zarr = pytest.importorskip("zarr", reason="needs the extra [zarr]")


def write_field(
    folder: Path,
    pixels: Pixels,
    *,
    axes: str = "tczyx",
    version: Literal[2, 3] = 2,
    **options: Any,
) -> None:
    """A field as OME-Zarr 0.4 (Zarr 2) or 0.5 (Zarr 3), with a second, smaller resolution."""
    group = zarr.open_group(folder, mode="w", zarr_format=version)
    chunks = tuple(min(length, 16) for length in pixels.shape)
    full = group.create_array("0", shape=pixels.shape, chunks=chunks, dtype=pixels.dtype, **options)
    full[...] = pixels
    group.create_array("1", shape=(1,) * pixels.ndim, dtype=pixels.dtype)
    named = [{"name": axis} for axis in axes]
    image = [{"axes": named, "datasets": [{"path": "0"}, {"path": "1"}]}]
    group.attrs.update({"ome": {"multiscales": image}} if version == 3 else {"multiscales": image})


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(1, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yx", "yxc"])
def test_a_field(tmp_path: Path, version: Literal[2, 3], axes: str) -> None:
    lengths = {"t": 1, "c": 3, "z": 1, "y": 20, "x": 30}
    pixels = noise(*(lengths[axis] for axis in axes))
    write_field(tmp_path / "f", pixels, axes=axes, version=version)
    expected = pixels.reshape(-1, 20, 30) if axes != "yxc" else pixels.transpose(2, 0, 1)
    found = read_image(tmp_path / "f")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_shards(tmp_path: Path) -> None:
    pixels = noise(1, 32, 32)
    write_field(tmp_path / "f", pixels, axes="cyx", version=3, shards=(1, 32, 32))
    np.testing.assert_array_equal(read_image(tmp_path / "f"), pixels)


def test_other_groups_are_refused(tmp_path: Path) -> None:
    write_field(tmp_path / "deep", noise(1, 2, 3, 8, 8))
    with pytest.raises(UserError, match=r"axes TCZYX \(1, 2, 3, 8, 8\)"):
        read_image(tmp_path / "deep")
    with pytest.raises(UserError, match="384 pixels over all channels"):
        read_image(tmp_path / "deep", max_pixels=383)
    zarr.open_group(tmp_path / "plate", mode="w", zarr_format=2).attrs["plate"] = {}
    with pytest.raises(UserError, match=r"an OME-Zarr plate, not an image; name a field"):
        read_image(tmp_path / "plate")
    attributes = tmp_path / "deep" / ".zattrs"
    attributes.write_text(attributes.read_text().replace('"path": "0"', '"path": "../plate"'))
    with pytest.raises(UserError, match="lies outside it"):
        read_image(tmp_path / "deep")
    attributes.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_image(tmp_path / "deep")


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_nothing_is_unpickled(tmp_path: Path, place: str) -> None:
    write_field(tmp_path / "f", noise(1, 8, 8), axes="cyx")
    file = tmp_path / "f" / "0" / ".zarray"
    described = json.loads(file.read_text())
    described[place] = {"id": "pickle"} if place == "compressor" else [{"id": "pickle"}]
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="coded by pickle"):
        read_image(tmp_path / "f")


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_field(tmp_path / "f", noise(1, 8, 8), axes="cyx")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UserError, match=r"deconfound\[zarr\]"):
        read_image(tmp_path / "f")


def test_cells_of_a_plate(tmp_path: Path) -> None:
    pixels = noise(3, 1, 2, 1, 40, 40)
    places = ["A/1/0", "A/1/1", "B/12/0"]
    for place, field in zip(places, pixels, strict=True):
        write_field(tmp_path / "p.zarr" / place, field)
    table = pd.DataFrame(
        {
            "Path": [places[row % 3] for row in range(9)],
            "Location_Center_X": np.arange(9) * 2.0 + 10,
            "Location_Center_Y": np.arange(9) + 10.0,
            "Metadata_Perturbation": [*"ab"] * 4 + ["a"],
            "Metadata_Plate": "p",
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    config = IngestConfig(crop=8, channels=("DNA", "ER"))
    screen = ingest(
        tmp_path / "t.csv", tmp_path / "p.zarr", tmp_path / "s", config=config, quiet=True
    )
    expected = [
        pixels[row % 3, 0, :, 0, row + 6 : row + 14, 2 * row + 6 : 2 * row + 14] for row in range(9)
    ]
    np.testing.assert_array_equal(screen.read(range(9)), expected)
