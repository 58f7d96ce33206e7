"""One image file (PNG, JPEG, BMP, TIFF or NPY) as an array (C, H, W)."""

import functools
import logging
import lzma
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.data.readers.ome_zarr import read_field
from deconfound.errors import UserError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it speaks to the terminal

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG"
_PNG_GREY = 0
_JPEG_MAGIC = b"\xff\xd8\xff"
_BMP_MAGIC = b"BM"
_NPY_MAGIC = b"\x93NUMPY"
_INFLATERS: dict[str, Any] = {
    "ADOBE_DEFLATE": zlib.decompressobj,
    "DEFLATE": zlib.decompressobj,
    "LZMA": lzma.LZMADecompressor,
}
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA"}


def read_image(file: Path, *, channels: int | None = None, max_pixels: int = 2**26) -> Pixels:
    """Decode one file, told by its first bytes: (C, H, W) uint8, uint16 or float32, full range.

    PNG, JPEG and BMP: grey is one channel, 1-bit becomes 0 and 255, a palette becomes its RGB
    colours. Their alpha channel is dropped unless `channels` counts it. TIFF: the one axis beside
    height and width, or the pages, are the channels, all of them: scientific writers mark a fourth
    channel as alpha. NPY: H × W, C × H × W or H × W × C; the axis of `channels`, or else the
    shorter of first and last, is the channels. A folder is an image of OME-Zarr. Floats become
    float32; int8 and int16 without negative values become unsigned. EXIF rotation is not applied.
    Raises UserError (without the file's name) for a file that is no image, is damaged, holds more
    than `max_pixels` (height × width × channels, checked before decoding), pixels that are not
    finite or of another type.
    """
    try:
        if file.is_dir():
            pixels = read_field(file, max_pixels)
        else:
            pixels = _read_file(file, channels, max_pixels)
    except UserError:
        raise
    # Decoders fed with damaged bytes raise nearly every type there is.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"damaged or cut short ({reason}); restore the file") from error
    return _stored(pixels)


def _read_file(file: Path, channels: int | None, max_pixels: int) -> Pixels:
    with file.open("rb") as stream:
        head = stream.read(26)
        stream.seek(0)
        if head.startswith(_TIFF_MAGIC):
            return _read_tiff(stream, max_pixels)
        if head.startswith((_PNG_MAGIC, _JPEG_MAGIC, _BMP_MAGIC)):
            return _read_by_pillow(stream, head, channels, max_pixels)
        if head.startswith(_NPY_MAGIC):
            return _read_npy(file, channels, max_pixels)
    raise UserError("not a PNG, JPEG, BMP, TIFF or NPY file; save it as one, or drop the row")


def _stored(pixels: Pixels) -> Pixels:
    """`pixels`, contiguous and native, in one of the three types that a screen stores."""
    kind = pixels.dtype
    if kind == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif kind.kind == "f" and kind.itemsize in (2, 4, 8):
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise UserError("pixels that are not finite (NaN or infinite); mend the file")
    elif kind.kind == "i" and kind.itemsize <= 2:
        if pixels.min() < 0:
            raise UserError(
                f"negative pixels of type {kind}; add an offset and save it as uint16, or convert "
                "it to float32"
            )
        pixels = pixels.astype(f"u{kind.itemsize}")
    elif kind.kind == "u" and kind.itemsize <= 2:
        pixels = pixels.astype(kind.newbyteorder("="), copy=False)
    else:
        raise UserError(
            f"pixels of type {kind}; expected 8 or 16-bit integers or floats, convert the file"
        )
    return np.ascontiguousarray(pixels)


def resampled(pixels: Pixels, size: int) -> Pixels:
    """(C, H, W) as (C, size, size) of the same dtype; the aspect ratio is not kept.

    An axis that shrinks takes the mean of the area each pixel covers; one that grows is
    interpolated linearly between pixel centres. Integers are rounded.
    """
    if pixels.shape[1:] == (size, size):
        return pixels
    rows, columns = (_weights(length, size) for length in pixels.shape[1:])
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


def _refuse_huge(count: int, max_pixels: int) -> None:
    if count > max_pixels:
        raise UserError(
            f"{count} pixels over all channels, more than {max_pixels}; crop the image, or raise "
            "--max-pixels if it is meant to be this large"
        )


def _read_by_pillow(stream: BinaryIO, head: bytes, channels: int | None, max_pixels: int) -> Pixels:
    if head.startswith(_PNG_MAGIC):
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        _refuse_huge(width * height, max_pixels)
        if depth == 16 and colour != _PNG_GREY:
            raise UserError(
                "a colour PNG of 16 bits a channel, which would lose its lower 8 bits; save it as "
                "TIFF, or as one grey PNG per channel"
            )
        _verify_png(stream)
        stream.seek(0)
    with Image.open(stream, formats=("PNG", "JPEG", "BMP")) as image:
        _refuse_huge(image.width * image.height * len(image.getbands()), max_pixels)
        if image.mode in ("CMYK", "YCCK"):
            raise UserError("a CMYK JPEG; save it as grey or RGB")
        mode = _CONVERTED.get(image.mode)
        values = np.asarray(image.convert(mode) if mode else image)
    if values.ndim == 2:
        return values[None]
    pixels = values.transpose(2, 0, 1)
    has_alpha = len(pixels) in (2, 4)
    return pixels[:-1] if has_alpha and channels != len(pixels) else pixels


def _verify_png(stream: BinaryIO) -> None:
    """Check every chunk and the end: Pillow accepts a PNG that is cut short or changed inside."""
    stream.seek(8)
    kind = b""
    while kind != b"IEND":
        start = stream.read(8)
        if len(start) < 8:
            raise ValueError("its closing bytes are missing")
        length, kind = struct.unpack(">I4s", start)
        checksum = zlib.crc32(kind)
        while length and (part := stream.read(min(length, 2**20))):
            checksum = zlib.crc32(part, checksum)
            length -= len(part)
        if stream.read(4) != struct.pack(">I", checksum):
            raise ValueError(f"the checksum of its part {kind!r} differs")


def _read_npy(file: Path, channels: int | None, max_pixels: int) -> Pixels:
    with np.errstate(over="ignore"):  # by the size that a header claims
        values: Pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    _refuse_huge(values.size, max_pixels)
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise UserError(f"an array {values.shape}; expected H × W, C × H × W or H × W × C")
    first, _, last = values.shape
    if first == last or (channels in (first, last)):
        is_first = channels == first
        is_last = channels == last
    else:
        is_first, is_last = first < last, last < first
    if is_first == is_last:
        raise UserError(
            f"an array {values.shape} in which first and last axis could both be the channels; "
            "name the channels with --channels, or save it as TIFF"
        )
    return values if is_first else values.transpose(2, 0, 1)


def _read_tiff(stream: BinaryIO, max_pixels: int) -> Pixels:
    # _multifile: the header of an OME-TIFF may name other files, which are never opened.
    with tifffile.TiffFile(stream, _multifile=False) as tiff:
        if len(tiff.series) != 1:
            raise UserError(f"a TIFF of {len(tiff.series)} image series; save one series per file")
        series: Any = tiff.series[0]
        _refuse_huge(series.size, max_pixels)
        page = series.keyframe
        if page.photometric.name not in ("MINISBLACK", "RGB"):
            raise UserError(
                f"a TIFF whose pixels mean {page.photometric.name}; save it as grey (0 is black) "
                "or RGB"
            )
        sides = [series.axes.index("Y"), series.axes.index("X")]
        others = [axis for axis in range(len(series.shape)) if axis not in sides]
        if sum(series.shape[axis] > 1 for axis in others) > 1:
            raise UserError(
                f"a TIFF with axes {series.axes} {series.shape}; expected height, width and at "
                "most one more, the channels: project or split the others"
            )
        if any(0 in page.databytecounts for page in series.pages):
            raise UserError("a TIFF with strips never written, which would read as 0; restore it")
        _refuse_bomb(stream, series, max_pixels)
        values = _decoded(stream, series)
    height, width = (values.shape[side] for side in sides)
    return values.transpose(*others, *sides).reshape(-1, height, width)


def _refuse_bomb(stream: BinaryIO, series: Any, max_pixels: int) -> None:
    """Refuse a TIFF with a part that unpacks to more than its size; tifffile has no limit."""
    page = series.keyframe
    inflater = _INFLATERS.get(page.compression.name)
    if inflater is None:
        return
    pixels = math.prod(page.chunks)
    _refuse_huge(pixels, max_pixels)
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
