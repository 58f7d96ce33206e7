"""Colored MNIST: digits whose colour follows the digit, by a rule that the environment chooses.

Makino et al., SCBD, appendix A.2.1. The grey values are multiplied, as in the authors' generator;
the text reads as if the foreground were first set to one.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Bytes
from deconfound.config import Options
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files.checksums import sha256
from deconfound.runtime.seeds import numpy_stream

SUMMARY = "Colored MNIST: 60,000 digits in two colour environments, 10,000 white ones to test on"
PAPER = "Makino et al., Supervised Contrastive Block Disentanglement (SCBD), 2025"
SIDE = 32
VAL_FRACTION = 0.2
CHUNK = 4096
_MOST_IMAGES = 60_000
_IMAGE_MAGIC = 2051
_LABEL_MAGIC = 2049


class Config(Options):
    """Options of Colored MNIST."""

    seed: int = 0
    """Seed of the colours and of the split; the paper keeps 0, so that runs differ in training
    alone."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write Colored MNIST at `out` from the four MNIST files in `root` and open it.

    Images (N, 3, 32, 32) uint8, 0-255. Columns: `Metadata_Digit` ("0"-"9"), `Metadata_Environment`
    ("0", "1"; missing in the test), `Metadata_Split` (train, val: 80/20 of the MNIST training
    files; test) and `Metadata_ImageNumber` (the image's place in its file). Deviation: stored as
    uint8, so each value is within 0.5/255 of the exact colour. Raises UserError for a missing,
    damaged or foreign file.
    """
    config = config or Config()
    root = Path(root)
    names = ("train-images", "train-labels", "t10k-images", "t10k-labels")
    files = [_find(root, name) for name in names]
    grey, digit = _read_pair(*files[:2])
    test_grey, test_digit = _read_pair(*files[2:])
    environment = numpy_stream(config.seed, "cmnist", "environment").integers(0, 2, len(digit))
    split = np.full(len(digit), "train", dtype=object)
    order = numpy_stream(config.seed, "cmnist", "split").permutation(len(digit))
    split[order[: round(VAL_FRACTION * len(digit))]] = "val"
    table = pd.DataFrame(
        {
            "Metadata_Digit": np.concatenate([digit, test_digit]).astype(str),
            "Metadata_Environment": [*environment.astype(str), *[None] * len(test_digit)],
            "Metadata_Split": [*split, *["test"] * len(test_digit)],
            "Metadata_ImageNumber": [*range(len(digit)), *range(len(test_digit))],
        }
    )
    roles = Roles(
        label="Metadata_Digit",
        environment=("Metadata_Environment",),
        levels=("Metadata_Environment",),
        split="Metadata_Split",
    )
    provenance = {
        "made_by": "source cmnist",
        "paper": PAPER,
        "options": config.model_dump(mode="json"),
        "sha256": {file.name: sha256(file) for file in files},
        "deviation": "colours rounded to uint8, within 0.5/255",
    }
    with ScreenWriter(out, "cmnist", ("R", "G", "B"), roles, provenance) as writer:
        for rows in _chunks(len(digit)):
            writer.append(coloured(grey[rows], digit[rows], environment[rows]))
        for rows in _chunks(len(test_digit)):
            writer.append(np.repeat(upsampled(test_grey[rows])[:, None], 3, axis=1))
        writer.finish(table)
    return open_screen(out)


def upsampled(grey: Bytes) -> Bytes:
    """(B, 28, 28) to (B, 32, 32), nearest: pixel i comes from floor(i × 28/32)."""
    source = np.arange(SIDE) * grey.shape[1] // SIDE
    return grey[:, source[:, None], source[None, :]]


def coloured(grey: Bytes, digit: npt.NDArray[Any], environment: npt.NDArray[Any]) -> Bytes:
    """(B, 28, 28) uint8 grey digits as (B, 3, 32, 32) uint8 colours.

    With `digit` y (B,) in 0-9, `environment` 0 multiplies G and B by y/10 and environment 1
    multiplies R and B by (9 − y)/10; products are rounded half up, at most 0.5 off.
    """
    tenths = np.full((len(digit), 3), 10, dtype=np.uint16)
    first = environment == 0
    tenths[np.ix_(first, [1, 2])] = digit[first, None]
    tenths[np.ix_(~first, [0, 2])] = 9 - digit[~first, None]
    product = upsampled(grey)[:, None].astype(np.uint16) * tenths[:, :, None, None]
    return ((product + 5) // 10).astype(np.uint8)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK))


def _find(root: Path, name: str) -> Path:
    dimensions = "idx3" if name.endswith("images") else "idx1"
    stems = (f"{name}-{dimensions}-ubyte", f"{name}.{dimensions}-ubyte")
    for stem in stems:
        for file in (root / stem, root / f"{stem}.gz"):
            if file.is_file():
                return file
    raise UserError(
        f"{root}: no {stems[0]} (or {stems[0]}.gz); put the four MNIST idx files there, from "
        "yann.lecun.com/exdb/mnist or one of its mirrors"
    )


def _read_pair(image_file: Path, label_file: Path) -> tuple[Bytes, Bytes]:
    """(N, 28, 28) grey values and (N,) digits."""
    grey = _read_idx(image_file, _IMAGE_MAGIC, (28, 28))
    digit = _read_idx(label_file, _LABEL_MAGIC, ())
    if len(grey) != len(digit):
        raise UserError(
            f"{label_file}: {len(digit)} labels for the {len(grey)} images of {image_file.name}; "
            "take both from one copy of MNIST"
        )
    if digit.max() > 9:
        raise UserError(f"{label_file}: a label of {digit.max()}, expected 0 to 9; fetch it again")
    return grey, digit


def _read_idx(file: Path, magic: int, item_shape: tuple[int, ...]) -> Bytes:
    """(N, *item_shape) uint8; reads no more than the header announces."""
    fields = 2 + len(item_shape)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            header = stream.read(4 * fields)
            if len(header) < 4 * fields:
                raise UserError(f"{file}: ends inside its header; fetch it again")
            found, count, *shape = struct.unpack(f">{fields}I", header)
            if found != magic or tuple(shape) != item_shape or not 1 <= count <= _MOST_IMAGES:
                raise UserError(
                    f"{file}: magic number {found}, size {(count, *shape)}; expected {magic} and "
                    f"(N, {', '.join(map(str, item_shape))}) with N up to {_MOST_IMAGES}: not this "
                    "MNIST file, fetch it again"
                )
            wanted = count * int(np.prod(item_shape, dtype=np.int64))
            body = stream.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: damaged ({error}); fetch it again") from error
    if len(body) != wanted:
        what = "cut short" if len(body) < wanted else "followed by foreign bytes"
        raise UserError(f"{file}: {what}, {wanted} bytes expected after the header; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(count, *item_shape)
