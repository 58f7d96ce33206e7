"""One image of an OME-Zarr store, such as a field of view of a plate, as an array (C, H, W)."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.errors import UserError

MARKERS = ("zarr.json", ".zattrs")
# Anything else is refused: some codecs, pickle among them, run code from the data.
_CODECS = {"blosc", "bytes", "bz2", "crc32c", "delta", "endian", "gzip", "lz4", "lzma"}
_CODECS |= {"sharding_indexed", "shuffle", "transpose", "zlib", "zstd"}


def is_group(folder: Path) -> bool:
    """Whether `folder` is a Zarr group with attributes."""
    return any((folder / marker).is_file() for marker in MARKERS)


def read_field(folder: Path, max_pixels: int) -> npt.NDArray[Any]:
    """(C, H, W) of the highest resolution in `folder`, the group of one image (version 0.4 or 0.5).

    In a plate that is PLATE.zarr/ROW/COLUMN/FIELD. Time and depth must have length 1. Raises
    UserError (without the folder's name) for a group that is no image, other axes, more than
    `max_pixels` over all channels, a codec that could run code, or where zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise UserError(
            "OME-Zarr needs one more package: pip install 'deconfound[zarr]'"
        ) from error
    axes, name = _highest_resolution(folder)
    place = folder / name
    version = 3 if (place / "zarr.json").is_file() else 2
    described = _json(place / ("zarr.json" if version == 3 else ".zarray"))
    unknown = sorted(set(_codecs(described)) - _CODECS)
    if unknown:
        raise UserError(
            f"an OME-Zarr array coded by {', '.join(unknown)}; write it with blosc, zstd or gzip"
        )
    array = zarr.open_array(place, mode="r", zarr_format=version)  # type: ignore[arg-type]
    count = int(np.prod(array.shape))
    if count > max_pixels:
        raise UserError(
            f"{count} pixels over all channels, more than {max_pixels}; raise --max-pixels if the "
            "image is meant to be this large"
        )
    lengths = dict(zip(axes, array.shape, strict=True))
    deep = [axis for axis in axes if axis not in "cyx" and lengths[axis] > 1]
    if deep or not {"y", "x"} <= set(axes):
        raise UserError(
            f"an OME-Zarr image with axes {axes} {array.shape}; expected height, width and at most "
            "channels: project or split the others"
        )
    order = [axes.index(axis) for axis in axes if axis not in "yx"]
    values = np.asarray(array[...]).transpose(*order, axes.index("y"), axes.index("x"))
    return values.reshape(-1, lengths["y"], lengths["x"])


def _highest_resolution(folder: Path) -> tuple[str, str]:
    """The axes of a group's image, one letter each, and the name of its largest array."""
    if (folder / "zarr.json").is_file():
        attributes = _json(folder / "zarr.json").get("attributes", {})
        attributes = attributes.get("ome", attributes)
    else:
        attributes = _json(folder / ".zattrs")
    if "multiscales" not in attributes:
        what = "plate" if "plate" in attributes else "well" if "well" in attributes else "group"
        raise UserError(f"an OME-Zarr {what}, not an image; name a field, such as PLATE.zarr/A/1/0")
    image = attributes["multiscales"][0]
    axes = "".join(
        axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes", "tczyx")
    )
    name = str(image["datasets"][0]["path"])
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"an OME-Zarr image whose array {name!r} lies outside it; mend the file")
    return axes, name


def _json(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _codecs(described: Any) -> Iterator[str]:
    """Names of all codecs in the description of an array, those inside a shard too."""
    for key in ("codecs", "index_codecs", "filters", "compressor"):
        found = described.get(key) or []
        for codec in found if isinstance(found, list) else [found]:
            name = str(codec.get("name", codec.get("id")))
            yield name.removeprefix("numcodecs.")
            yield from _codecs(codec.get("configuration", {}))
