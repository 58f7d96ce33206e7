"""Tiles: means of the pixels that they cover, limits, and their places on a sheet."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.display.tiles import Sheet, pictures, read_tiles, shared_limits, sheet, tile_size


def picture(made: Sheet) -> np.ndarray:
    """The whole sheet, (rows × height, columns × width, 3)."""
    content = base64.b64decode(made.source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_tile_is_the_mean_of_the_pixels_it_covers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 60_000, (3, 2, 8, 16), dtype=np.uint16)
    table = pd.DataFrame({"drug": list("aab"), "plate": list("PQR"), "well": ["A01"] * 3})
    roles = Roles(label="drug", environment=("plate",))
    with ScreenWriter(tmp_path / "s", "s", ("DNA", "ER"), roles, {}) as writer:
        writer.append(images)
        writer.finish(table)
    screen = open_screen(tmp_path / "s")
    assert tile_size(screen, 4) == (2, 4)
    tiles = read_tiles(screen, np.array([2, 0]), 4)
    means = images[[2, 0]].reshape(2, 2, 2, 4, 4, 4).mean(axis=(3, 5))
    assert tiles.dtype == np.uint16
    np.testing.assert_allclose(tiles, means, atol=0.51)
    assert (read_tiles(screen, np.array([1]), 64) == images[1:2]).all()


def test_shared_limits_keep_differences_and_own_limits_remove_them() -> None:
    pattern = np.tile(np.linspace(0, 1, 64), (64, 1))
    tiles = np.stack([100 + 100 * pattern, 100 + 1000 * pattern])[:, None].astype(np.uint16)
    shared = pictures(tiles, ["DNA"], shared_limits(tiles, ["DNA"]))
    assert shared[0].max() < 40
    assert shared[1].max() == 255
    dark, bright = pictures(tiles, ["DNA"], None).astype(int)
    assert dark.max() == 255
    assert abs(dark - bright).max() <= 3


def test_own_limits_of_a_photograph_keep_its_hues() -> None:
    photograph = np.zeros((1, 3, 4, 4), np.uint8)
    photograph[0, 0], photograph[0, 1] = 40, 20
    shown = pictures(photograph, ["r", "g", "b"], None)
    assert shown[0, 0, 0].tolist() == [255, 128, 0]
    whole = shared_limits(photograph, ["r", "g", "b"])
    assert pictures(photograph, ["r", "g", "b"], whole)[0, 0, 0].tolist() == [40, 20, 0]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_places_on_a_sheet_are_those_of_the_style_sheet(count: int) -> None:
    shown = np.zeros((count, 16, 32, 3), np.uint8)
    shown[:] = 20 * np.arange(1, count + 1)[:, None, None, None]
    made = sheet(shown, 100)
    whole = picture(made)
    assert whole.shape == (made.rows * 16, made.columns * 32, 3)
    for tile in range(count):
        # A share of 0 % lays left edges on each other, one of 100 % right edges.
        x, y = (float(one.rstrip("%")) / 100 for one in made.place(tile).split())
        left, top = round(x * (whole.shape[1] - 32)), round(y * (whole.shape[0] - 16))
        inside = whole[top : top + 16, left : left + 32].astype(int)
        assert abs(inside - 20 * (tile + 1)).max() <= 3
