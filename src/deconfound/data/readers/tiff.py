"""One TIFF file as an array, and the names that an OME-TIFF gives its channels."""

import logging
import lzma
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.data.readers.axes import Project, Taken, planned
from deconfound.data.readers.bounds import refuse_huge
from deconfound.errors import UserError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it speaks to the terminal

_INFLATERS: dict[str, Any] = {
    "ADOBE_DEFLATE": zlib.decompressobj,
    "DEFLATE": zlib.decompressobj,
    "LZMA": lzma.LZMADecompressor,
}


def read_tiff(
    stream: BinaryIO, channels: int | None, project: Project | None, max_pixels: int
) -> tuple[Pixels, Taken]:
    """(C, H, W) and how the axes were taken; all samples are channels, those called alpha too.

    Raises UserError (without the file's name) for several series, axes that cannot be told, pixels
    that are neither grey nor RGB, more than `max_pixels`, and parts that are missing or unpack to
    more than they declare.
    """
    # _multifile: the header of an OME-TIFF may name other files, which are never opened.
    with tifffile.TiffFile(stream, _multifile=False) as tiff:
        if len(tiff.series) != 1:
            raise UserError(f"a TIFF of {len(tiff.series)} image series; save one series per file")
        series: Any = tiff.series[0]
        refuse_huge(math.prod(series.shape), max_pixels)
        page = series.keyframe
        if page.photometric.name not in ("MINISBLACK", "RGB"):
            raise UserError(
                f"a TIFF whose pixels mean {page.photometric.name}; save it as grey (0 is black) "
                "or RGB"
            )
        plan = planned("TIFF", series.axes, series.shape, channels=channels, project=project)
        if any(0 in page.databytecounts for page in series.pages):
            raise UserError("a TIFF with strips never written, which would read as 0; restore it")
        _refuse_bomb(stream, series, max_pixels)
        values = _decoded(stream, series)
    return plan.apply(values), plan.taken


def _refuse_bomb(stream: BinaryIO, series: Any, max_pixels: int) -> None:
    """Refuse a TIFF with a part that unpacks to more than its size; tifffile has no limit."""
    page = series.keyframe
    inflater = _INFLATERS.get(page.compression.name)
    if inflater is None:
        return
    pixels = math.prod(page.chunks)
    refuse_huge(pixels, max_pixels)
    size = pixels * series.dtype.itemsize
    for page in series.pages:
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            stream.seek(offset)
            if len(inflater().decompress(stream.read(length), size + 1)) > size:
                raise UserError(
                    f"a TIFF that unpacks to more than the {size} bytes it declares; drop the row"
                )


def _decoded(stream: BinaryIO, series: Any) -> Pixels:
    """The series' values in its own axes; LZW compression by Pillow, page by page."""
    page = series.keyframe
    try:
        values: Pixels = series.asarray(maxworkers=1)
        return values
    except (ValueError, ImportError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        if page.compression.name != "LZW" or (page.samplesperpixel > 1 and series.dtype != "uint8"):
            raise UserError(
                f"a TIFF of {page.samplesperpixel} × {series.dtype} compressed by "
                f"{page.compression.name}, which needs one more package: pip install imagecodecs"
            ) from error
    stream.seek(0)
    with Image.open(stream, formats=("TIFF",)) as image:
        pages = []
        for number in range(len(series.pages)):
            image.seek(number)
            pages.append(np.asarray(image))
    return np.stack(pages).reshape(series.shape)


def ome_channel_names(file: Path, count: int) -> tuple[str, ...] | None:
    """The names of `count` channels; None where a file is no OME-TIFF or does not name them all.

    Names that are empty, given twice or not printable do not count, nor does one name for all
    channels of an RGB image.
    """
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            described = tiff.ome_metadata
        if described is None:
            return None
        root = ElementTree.fromstring(described)
    except (tifffile.TiffFileError, OSError, ValueError, ElementTree.ParseError):
        return None
    images = root.findall(".//{*}Pixels")
    if len(images) != 1:
        return None
    names = tuple(found.get("Name", "").strip() for found in images[0].findall("{*}Channel"))
    fit = all(name and name.isprintable() for name in names) and len(set(names)) == len(names)
    return names if fit and len(names) == count else None
