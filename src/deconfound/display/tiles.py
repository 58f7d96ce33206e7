"""Small pictures of a screen's images, and sheets that hold many of them in one file."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deconfound.arrays import Bytes, Doubles, Pixels, Rows
from deconfound.data.screens.screen import Screen
from deconfound.display.page import data_uri
from deconfound.display.pixels import PERCENTILES, contrast, is_photograph, rgb

QUALITY = 80
"""Of WebP, 0 … 100, where nothing else is said."""
READ_PIXELS = 2**24
"""Pixels at most that are read at once."""


class Sheet(NamedTuple):
    """Tiles of one size in one picture, row by row."""

    source: str
    """WebP as a data URI."""
    columns: int
    rows: int
    width: int
    height: int
    """Of a tile, in pixels."""

    def place(self, tile: int) -> str:
        """The CSS `background-position` of a tile, in shares of the sheet."""
        down, across = divmod(tile, self.columns)
        x, y = across / max(1, self.columns - 1), down / max(1, self.rows - 1)
        return f"{100 * x:.4g}% {100 * y:.4g}%"


def tile_size(screen: Screen, side: int) -> tuple[int, int]:
    """Height and width of a tile whose longer side is at most `side` px; never enlarged."""
    height, width = screen.image_shape[1:]
    shrink = min(1.0, side / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def read_tiles(screen: Screen, rows: Rows, side: int) -> Pixels:
    """Images of `rows` shrunk to `tile_size`: (B, C, h, w) in stored units and type.

    A pixel is the mean of those that it covers.
    """
    from PIL import Image

    height, width = tile_size(screen, side)
    tiles = np.empty((len(rows), len(screen.channels), height, width), screen.dtype)
    step = max(1, READ_PIXELS // int(np.prod(screen.image_shape)))
    for start in range(0, len(rows), step):
        pixels = screen.read(rows[start : start + step])
        if pixels.shape[2:] == (height, width):
            tiles[start : start + step] = pixels
            continue
        for place in np.ndindex(*pixels.shape[:2]):
            plane = Image.fromarray(pixels[place].astype(np.float32))
            small = np.asarray(plane.resize((width, height), Image.Resampling.BOX))
            small = np.rint(small) if screen.dtype.kind == "u" else small
            tiles[start + place[0], place[1]] = small.astype(screen.dtype)
    return tiles


def shared_limits(tiles: Pixels, channels: Sequence[str]) -> Doubles:
    """Darkest and brightest value shown of each channel, one for all tiles: (C, 2)."""
    return contrast(tiles, channels)


def pictures(tiles: Pixels, channels: Sequence[str], limits: Doubles | None) -> Bytes:
    """Tiles as RGB (B, h, w, 3); between `limits` (C, 2), or each image's own if None.

    An image's own limits are its 0.5th and 99.8th percentile of each channel, and of all three
    together in a photograph, whose hues stay true.
    """
    if limits is not None:
        return rgb(tiles, channels, limits)
    shown = np.empty((len(tiles), *tiles.shape[2:], 3), np.uint8)
    for place in range(len(tiles)):
        one = tiles[place : place + 1]
        own = contrast(one, channels)
        if is_photograph(channels):
            own = np.tile(np.percentile(one.astype(np.float64), PERCENTILES), (len(channels), 1))
        shown[place] = rgb(one, channels, own)[0]
    return shown


def sheet(shown: Bytes, quality: int = QUALITY) -> Sheet:
    """A sheet of pictures (B, h, w, 3), B ≥ 1, as WebP of that quality."""
    from PIL import Image

    count, height, width, _ = shown.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    whole = np.zeros((rows * columns, height, width, 3), np.uint8)
    whole[:count] = shown
    grid = whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    buffer = io.BytesIO()
    picture = Image.fromarray(grid.reshape(rows * height, columns * width, 3))
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return Sheet(data_uri("image/webp", buffer.getvalue()), columns, rows, width, height)
