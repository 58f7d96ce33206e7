"""Images of arrays, tensors and data sets, as a screen stores them.

Whole numbers stay uint8 or uint16. Floating point is stored as float32 in the units that it is in:
no range is assumed, since scaling is learnt from training images, but for `scaling="unit"`, which
takes float32 to be in [0, 1]. What would silently give wrong numbers is refused: values that are
not finite, other types of whole numbers, channels last.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from deconfound.arrays import Images
from deconfound.data.screens.writer import DTYPES
from deconfound.errors import UserError

APART = 20.0
"""Times that the brightest pixels of two sets of images differ by where one of them lies in [0, 1]
and the other does not, from which they are taken to be in different units."""


def images_of_array(data: Any) -> Images:
    """(N, C, H, W) uint8, uint16 or float32 of images (N, C, H, W) or (N, H, W), array or tensor.

    Raises UserError for another shape, images that are not square, another type, and values that
    are not finite.
    """
    values = _as_numpy(data)
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or not values.size:
        raise UserError(
            f"images of shape {_shape(values)}; expected (N, C, H, W), or (N, H, W) of one channel"
        )
    if values.shape[2] != values.shape[3]:
        remedy = "crop or pad them"
        if values.shape[1] == values.shape[2]:
            remedy = "the channels seem to be last, move them with numpy.moveaxis(images, -1, 1)"
        raise UserError(
            f"images of shape {_shape(values)}; expected (N, C, H, W) with H = W: {remedy}"
        )
    if values.dtype.kind == "f":
        values = _finite(values)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if str(values.dtype) not in DTYPES:
        raise UserError(
            f"images of type {values.dtype}; expected {', '.join(DTYPES)}, or another floating "
            "point; convert them, such as with images.astype('uint8') where they are 0 to 255"
        )
    return values


def images_of_dataset(data: "Dataset[Any]") -> Images:
    """The images of a data set whose items are an image, or a tuple that begins with one.

    They are read into memory. An image is an array or tensor (C, H, W) or (H, W), or a picture of
    Pillow. Raises UserError for an item that is none, or of another shape, and as
    `images_of_array`.
    """
    images: list[Images] = []
    for number, item in enumerate(_items(data)):
        image = _image(item[0] if isinstance(item, (tuple, list)) else item, number)
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise UserError(
                f"item {number} of the data set: image of shape {image.shape} {image.dtype}, the "
                f"first is {images[0].shape} {images[0].dtype}; expected one shape and type"
            )
        images.append(image)
    if not images:
        raise UserError("the data set has no items; expected one image or more")
    return images_of_array(np.stack(images))


def brightest_of(images: Images) -> float | None:
    """The largest absolute value of floating-point images; None for whole numbers, and profiles."""
    if images.dtype.kind != "f" or images.ndim != 4:
        return None
    return max(float(images.max()), -float(images.min()))


def refuse_other_units(images: Images, brightest: float | None) -> None:
    """Raise UserError for floating-point images in other units than those trained on.

    `brightest` is `brightest_of` those.
    """
    found = brightest_of(images)
    if found is None or brightest is None:
        return
    low, high = sorted((found, brightest))
    if low <= 1 < high and high > APART * low > 0:
        raise UserError(
            f"images whose brightest pixel is {found:.3g}; the model was fitted on images that "
            f"reach {brightest:.3g}, give them in the same units"
        )


def refuse_beyond_unit(images: Images, scaling: str) -> None:
    """Raise UserError for floating-point images outside [0, 1] where `scaling` takes that range."""
    if scaling == "unit" and images.dtype.kind == "f" and images.ndim == 4:
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise UserError(
                f"images of floating point from {low:.3g} to {high:.3g}; scaling='unit' expects 0 "
                "to 1, divide them by their full scale or choose scaling='standardise'"
            )


def _finite(images: Images) -> Images:
    """`images` as float32; raises UserError naming the first row that is not finite."""
    with np.errstate(over="ignore"):
        found: Images = np.asarray(images, dtype=np.float32)
    bounds = found.reshape(len(found), -1)  # NaN stays NaN
    wrong = np.flatnonzero(~(np.isfinite(bounds.min(axis=1)) & np.isfinite(bounds.max(axis=1))))
    if len(wrong):
        raise UserError(
            f"images: {len(wrong)} with pixels that are not finite (NaN, infinite or too large for "
            f"float32), the first is row {wrong[0]} (from 0); mend or drop them"
        )
    return found


def _as_numpy(data: Any) -> Images:
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = data.float() if data.is_floating_point() else data
        return np.asarray(data.numpy())
    return np.asarray(data)


def _items(data: Any) -> Iterable[Any]:
    if hasattr(data, "__len__"):
        return (data[number] for number in range(len(data)))
    if hasattr(data, "__iter__"):
        return (item for item in data)
    raise UserError("the data set has no length and cannot be iterated; give an array")


def _image(item: Any, number: int) -> Images:
    """(C, H, W) of one item."""
    if isinstance(item, Image.Image):
        pixels = np.asarray(item)
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in (2, 3):
        pixels = _as_numpy(item)
        return pixels[None] if pixels.ndim == 2 else pixels
    shape = f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else ""
    raise UserError(
        f"item {number} of the data set: {type(item).__name__}{shape}; expected an image (C, H, W) "
        "or (H, W), or a tuple that begins with one"
    )


def _shape(values: Images) -> str:
    return str(tuple(values.shape))
