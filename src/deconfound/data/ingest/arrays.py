"""Make a screen of one NumPy array and a table: images or profiles, row i of each together."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Pixels
from deconfound.data.ingest.forms import ARRAY, Forms, fitting, warn_of_forms
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.joins import with_joined
from deconfound.data.ingest.profiles import ROLE_OPTIONS, refuse_options, write_profiles
from deconfound.data.ingest.roles import resolve_roles
from deconfound.data.ingest.rows import CHUNK_BYTES
from deconfound.data.ingest.writing import provenance_of, refuse_full_disk
from deconfound.data.readers.array import open_array
from deconfound.data.readers.axes import Taken
from deconfound.data.readers.resizing import fitted
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import DTYPES, ScreenWriter
from deconfound.data.tables.table import read_table
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.runtime.progress import Progress

Axes = Literal["NCHW", "NHWC"]

ARRAY_OPTIONS = frozenset(
    {"channels", "size", "fit", "max_pixels", "transform", "percentile_by", "image_format"}
)


def ingest_array(
    table: Path,
    array: Path,
    out: Path,
    *,
    key: str | None = None,
    axes: Axes | None = None,
    config: IngestConfig | None = None,
    quiet: bool = False,
) -> Screen:
    """Write the rows of `array`, with those of `table`, as a screen at `out` and open it.

    `array` is a `.npy`, read by memory map, or a `.npz`, of which `key` names the array and which
    is unpacked as it is read. It holds images N×C×H×W, N×H×W×C or N×H×W (one channel), uint8,
    uint16 or float (stored as float32), or profiles N×D, of which those constant or not finite
    somewhere are dropped. Where `axes` is not given, the one axis as long as `config.channels` is
    the channels, or the two equal sides are height and width. Of `config` roles, name, channels (of
    profiles, the features), size, fit and the largest image are used. Nothing is unpickled.

    Raises UserError, and leaves nothing at `out`, for an array that cannot be read or told apart,
    of another length than the table, of another type, or with values that are not finite.
    """
    config = config or IngestConfig()
    refuse_options(config, ROLE_OPTIONS | ARRAY_OPTIONS, "arrays")
    refuse_existing(out)
    values = open_array(Path(array), key, max_pixels=config.max_pixels)
    metadata, joined_files = with_joined(read_table(table), config, str(table))
    if values.shape[0] != len(metadata):
        raise UserError(
            f"{array}: {values.shape[0]} rows, but {table} has {len(metadata)}; expected one row "
            "each"
        )
    is_image = len(values.shape) > 2
    if not is_image:
        refuse_options(config, ROLE_OPTIONS | ARRAY_OPTIONS - {"image_format"}, "profiles")
    command = ["deconfound", "ingest", str(table), "--array", str(array), "--out", str(out)]
    command += [] if key is None else ["--array-key", key]
    command += [] if axes is None else ["--array-axes", axes]
    roles = resolve_roles(metadata, config, str(table), command, row_is_image=is_image)
    scaled = config.size if config.fit in (None, "resize") else None
    provenance = provenance_of(table, None, config, scaled) | joined_files | {
        "rows": len(metadata),
        "array": str(array), "array_key": key, "array_axes": axes,
    }  # fmt: skip
    taken = _taken(values.shape, axes, len(config.channels), array) if is_image else None
    last = taken is not None and taken.taken == "NYXC"
    shape = _channels_first(np.broadcast_to(np.uint8(0), values.shape), last).shape
    kind = "channel" if is_image else "feature"
    names = config.channels or tuple(f"{kind}_{number}" for number in range(shape[1]))
    if len(names) != shape[1]:
        raise UserError(
            f"{array}: {shape[1]} channels or features, but --channels names {len(names)}; name as "
            "many"
        )
    if not is_image:
        place = {name: number for number, name in enumerate(names)}

        def chunks(wanted: Sequence[str]) -> Iterator[npt.NDArray[np.float32]]:
            columns = [place[name] for name in wanted]
            for part in values.parts(CHUNK_BYTES):
                yield _as_float32(part)[:, columns]

        return write_profiles(
            names,
            chunks,
            metadata,
            Path(out),
            roles,
            provenance,
            name=config.name,
            where=str(array),
            quiet=quiet,
        )
    size, bytes_each = config.size, min(4, values.dtype.itemsize)
    sides = (shape[2], shape[3]) if size is None else (size, size)
    if taken is not None:
        forms = Forms(axes=[taken], smallest=shape[2:], largest=shape[2:])
        provenance |= forms.provenance()
    if size is not None:
        provenance["fit"] = fitting(sides, config.fit)
    refuse_full_disk(Path(out), len(metadata) * len(names) * math.prod(sides) * bytes_each)
    with (
        ScreenWriter(
            out,
            config.name or Path(out).name,
            names,
            roles,
            provenance,
            image_format=config.image_format,
        ) as writer,
        Progress("ingest", len(metadata), "images", quiet=quiet) as progress,
    ):
        for stored in values.parts(CHUNK_BYTES):
            part = _pixels(_channels_first(stored, last), writer.rows, array)
            if size is not None:
                part = np.stack([fitted(image, sides, config.fit or "resize") for image in part])
            writer.append(part)
            progress.update(len(part))
        writer.finish(metadata, config.transform, config.percentile_by)
    warn_of_forms(provenance, str(array))
    return open_screen(out)


def _taken(shape: tuple[int, ...], axes: Axes | None, channels: int, file: Path) -> Taken:
    """How the axes of images are taken: NYX, NCYX or NYXC."""
    why, guessed, letters = "as --array-axes says", False, "NYX"
    if len(shape) == 3:
        why = "one channel"
    elif axes is not None:
        letters = "NCYX" if axes == "NCHW" else "NYXC"
    elif (shape[1] == channels) != (shape[3] == channels):
        letters = "NCYX" if shape[1] == channels else "NYXC"
        why = "--channels names as many"
    elif (shape[1] == shape[2]) != (shape[2] == shape[3]):
        letters = "NYXC" if shape[1] == shape[2] else "NCYX"
        why, guessed = "the two equal sides are height and width", True
    else:
        raise UserError(
            f"{file}: {shape}: which axis is the channel cannot be told from two equal sides; give "
            "--array-axes NCHW or NHWC"
        )
    given = "N" + " × ".join(["", *map(str, shape[1:])])
    return Taken(kind=ARRAY, axes=given, taken=letters, why=why, guessed=guessed)


def _channels_first(values: Pixels, last: bool) -> Pixels:
    """A view (N, C, H, W), or the profiles (N, D)."""
    if values.ndim == 3:
        return values[:, None]
    return values.transpose(0, 3, 1, 2) if last else values


def _pixels(images: Pixels, start: int, file: Path) -> Pixels:
    """A copy of the images in a type that a screen stores and in this machine's byte order."""
    if images.dtype.kind == "f":
        images = _as_float32(images)
        wrong = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if len(wrong):
            raise UserError(
                f"{file}: row {start + wrong[0]} (from 0): pixels that are not finite; mend them"
            )
    images = np.ascontiguousarray(images, dtype=images.dtype.newbyteorder("="))
    if str(images.dtype) not in DTYPES:
        raise UserError(f"{file}: pixels of type {images.dtype}; expected {', '.join(DTYPES)}")
    return images


def _as_float32(values: Pixels) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)
