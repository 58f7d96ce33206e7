"""One image of an OME-Zarr store, such as a field of view of a plate, as an array (C, H, W)."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.data.readers.axes import Project, Taken, planned
from deconfound.data.readers.bounds import refuse_huge
from deconfound.data.readers.zarr_chunks import described, refuse_unfit_chunks
from deconfound.errors import UserError

MARKERS = ("zarr.json", ".zattrs")
MAX_DESCRIPTION = 2**24
"""Bytes of a file that describes a group or an array."""


def is_group(folder: Path) -> bool:
    """Whether `folder` is a Zarr group with attributes."""
    return any((folder / marker).is_file() for marker in MARKERS)


def read_field(
    folder: Path, channels: int | None, project: Project | None, max_pixels: int
) -> tuple[npt.NDArray[Any], Taken]:
    """(C, H, W) of the highest resolution in `folder`, and how its axes were taken.

    `folder` is the group of one image (version 0.4 or 0.5), in a plate PLATE.zarr/ROW/COLUMN/FIELD.
    Time and depth longer than 1 need `project`, as `planned` says. Raises UserError (without the
    folder's name) for a group that is no image, other axes, more than `max_pixels` over all
    channels, or in its chunks, too many chunks, a codec that could run code, chunks that unpack to
    more than they declare, or where zarr is not installed.
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
    array = described(_json(place / ("zarr.json" if version == 3 else ".zarray")))
    refuse_huge(math.prod(array.shape), max_pixels)
    plan = planned("OME-Zarr", axes, array.shape, channels=channels, project=project)
    refuse_unfit_chunks(place, array, max_pixels)
    opened = zarr.open_array(place, mode="r", zarr_format=version)  # type: ignore[arg-type]
    return plan.apply(np.asarray(opened[...])), plan.taken


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
    axes = "".join(_letter(axis) for axis in image.get("axes", "tczyx"))
    name = str(image["datasets"][0]["path"])
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"an OME-Zarr image whose array {name!r} lies outside it; mend the file")
    return axes, name


def _letter(axis: str | dict[str, str]) -> str:
    """The letter of an axis, by its type or else its name; ? for any other."""
    named = {"name": axis} if isinstance(axis, str) else axis
    letter = {"channel": "C", "time": "T"}.get(named.get("type", ""), named["name"].upper())
    return letter if len(letter) == 1 and letter in "TCZYX" else "?"


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file() or file.stat().st_size > MAX_DESCRIPTION:
        raise UserError(
            f"an OME-Zarr group whose {file.name} is missing or has more than {MAX_DESCRIPTION} "
            "bytes; restore it"
        )
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values
