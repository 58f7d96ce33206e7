"""Images brought to one height and width: resized, padded or cropped."""

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Pixels
from deconfound.errors import UserError

Fit = Literal["resize", "pad", "crop"]
Sides = tuple[int, int]
"""Height and width in pixels."""


def fitted(pixels: Pixels, sides: Sides, fit: Fit) -> Pixels:
    """(C, H, W) as (C, *sides) of the same dtype.

    "resize" changes the scale, as `resampled` does. "pad" and "crop" keep it: "pad" puts zeros
    around the image, "crop" cuts out its middle; an odd row or column goes to the bottom or right.
    Raises UserError (without the file's name) if an image to pad is larger than `sides`, or one to
    crop is smaller.
    """
    if fit == "resize":
        return resampled(pixels, sides)
    height, width = pixels.shape[1:]
    differences = [
        abs(found - wanted) for found, wanted in zip((height, width), sides, strict=True)
    ]
    before = [difference // 2 for difference in differences]
    if fit == "pad":
        if height > sides[0] or width > sides[1]:
            raise UserError(
                f"{height} × {width} pixels do not fit into {sides[0]} × {sides[1]}, to which "
                "--fit pad fills up; give a larger --size, or --fit crop"
            )
        around = zip(before, differences, strict=True)
        return np.pad(pixels, ((0, 0), *((start, total - start) for start, total in around)))
    if height < sides[0] or width < sides[1]:
        raise UserError(
            f"{height} × {width} pixels do not fill {sides[0]} × {sides[1]}, to which --fit crop "
            "cuts; give a smaller --size, or --fit pad"
        )
    top, left = before
    return pixels[:, top : top + sides[0], left : left + sides[1]]


def resampled(pixels: Pixels, sides: Sides) -> Pixels:
    """(C, H, W) as (C, *sides) of the same dtype; scale and aspect ratio are not kept.

    An axis that shrinks takes the mean of the area each pixel covers; one that grows is
    interpolated linearly between pixel centres. Integers are rounded.
    """
    if pixels.shape[1:] == sides:
        return pixels
    rows, columns = (
        _weights(length, wanted) for length, wanted in zip(pixels.shape[1:], sides, strict=True)
    )
    result: Pixels = rows @ pixels.astype(np.float32) @ columns.T
    if np.issubdtype(pixels.dtype, np.integer):
        np.rint(result, out=result)
    return result.astype(pixels.dtype)


@functools.lru_cache(maxsize=16)
def _weights(length: int, size: int) -> npt.NDArray[np.float32]:
    """(size, length); row i says how much each of `length` pixels adds to pixel i; sums to 1."""
    pixel = np.arange(length)
    if size <= length:
        edges = np.arange(size + 1)[:, None] * (length / size)
        covered = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
        weights = np.clip(covered, 0, None) * (size / length)
    else:
        centres = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
        weights = np.clip(1 - abs(centres[:, None] - pixel), 0, None)
    return np.asarray(weights, dtype=np.float32)
