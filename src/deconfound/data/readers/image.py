"""One image file (PNG, JPEG, BMP, TIFF or NPY) or OME-Zarr image as an array (C, H, W)."""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.data.readers.axes import Project, Taken, planned
from deconfound.data.readers.bounds import MAX_PIXELS, refuse_huge
from deconfound.data.readers.ome_zarr import read_field
from deconfound.data.readers.tiff import read_tiff
from deconfound.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG"
_PNG_GREY = 0
_JPEG_MAGIC = b"\xff\xd8\xff"
_BMP_MAGIC = b"BM"
_NPY_MAGIC = b"\x93NUMPY"
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA"}


def read_image(
    file: Path,
    *,
    channels: int | None = None,
    max_pixels: int = MAX_PIXELS,
    project: Project | None = None,
) -> Pixels:
    """The pixels of `image_and_axes`, (C, H, W); raises UserError as it does."""
    return image_and_axes(file, channels=channels, max_pixels=max_pixels, project=project)[0]


def image_and_axes(
    file: Path,
    *,
    channels: int | None = None,
    max_pixels: int = MAX_PIXELS,
    project: Project | None = None,
) -> tuple[Pixels, Taken]:
    """Decode one file, told by its first bytes, and say how its axes were taken.

    (C, H, W) uint8, uint16 or float32, full range. PNG, JPEG and BMP: grey is one channel, 1-bit
    becomes 0 and 255, a palette becomes its RGB colours. Their alpha channel is dropped unless
    `channels`, the number of channels named, counts it. TIFF: the channels are the one axis beside
    height and width, or the pages, all of them: scientific writers mark a fourth channel as alpha.
    NPY: H × W, C × H × W or H × W × C. Axes that a file does not name are taken as `planned` says;
    `project` is what becomes of depth and time. A folder is an image of OME-Zarr. Floats become
    float32; int8 and int16 without negative values become unsigned. EXIF rotation is not applied.
    Raises UserError (without the file's name) for a file that is no image, is damaged, holds more
    than `max_pixels` (height × width × channels × depth × time, checked before decoding), axes that
    cannot be told, and pixels that are not finite or of another type.
    """
    try:
        if file.is_dir():
            pixels, taken = read_field(file, channels, project, max_pixels)
        else:
            pixels, taken = _read_file(file, channels, project, max_pixels)
    except UserError:
        raise
    # Decoders fed with damaged bytes raise nearly every type there is.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"damaged or cut short ({reason}); restore the file") from error
    return _stored(pixels), taken


def _read_file(
    file: Path, channels: int | None, project: Project | None, max_pixels: int
) -> tuple[Pixels, Taken]:
    with file.open("rb") as stream:
        head = stream.read(26)
        stream.seek(0)
        if head.startswith(_TIFF_MAGIC):
            return read_tiff(stream, channels, project, max_pixels)
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


def _read_by_pillow(
    stream: BinaryIO, head: bytes, channels: int | None, max_pixels: int
) -> tuple[Pixels, Taken]:
    if head.startswith(_PNG_MAGIC):
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        refuse_huge(width * height, max_pixels)
        if depth == 16 and colour != _PNG_GREY:
            raise UserError(
                "a PNG of 16 bits a channel with colour or alpha, which would lose its lower 8 "
                "bits; save it as TIFF, or as one grey PNG per channel"
            )
        _verify_png(stream)
        stream.seek(0)
    with Image.open(stream, formats=("PNG", "JPEG", "BMP")) as image:
        refuse_huge(image.width * image.height * len(image.getbands()), max_pixels)
        if image.mode in ("CMYK", "YCCK"):
            raise UserError("a CMYK JPEG; save it as grey or RGB")
        kind, of_palette = str(image.format), image.mode in ("P", "PA")
        transparent = "transparency" in image.info
        mode = _CONVERTED.get(image.mode)
        values = np.asarray(image.convert(mode) if mode else image)
    pixels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    has_alpha = len(pixels) in (2, 4)
    kept = has_alpha and channels == len(pixels)
    if has_alpha and not kept:
        pixels = pixels[:-1]
    taken = Taken(
        kind=kind,
        axes="YX" if values.ndim == 2 else "YXS",
        taken="YX" if len(pixels) == 1 else "YXC",
        why="the colours of its palette" if of_palette else "as the file says",
        alpha_dropped=transparent or (has_alpha and not kept),
    )
    return pixels, taken


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


def _read_npy(file: Path, channels: int | None, max_pixels: int) -> tuple[Pixels, Taken]:
    with np.errstate(over="ignore"):  # by the size that a header claims
        values: Pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    refuse_huge(values.size, max_pixels)
    if values.ndim not in (2, 3):
        raise UserError(f"an array {values.shape}; expected H × W, C × H × W or H × W × C")
    axes = "YX" if values.ndim == 2 else "QYX"
    plan = planned("NPY", axes, values.shape, channels=channels, either=True)
    return plan.apply(values), plan.taken
