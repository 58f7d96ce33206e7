"""Writing a screen, image by image."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from deconfound.arrays import Images
from deconfound.config import TransformName
from deconfound.data.screens.screen import FORMAT_VERSION, ZARR_VERSION, ScreenIndex
from deconfound.data.screens.shards import ShardsMark, ShardWriter
from deconfound.data.screens.zarr_images import ImageFormat, ZarrWriter
from deconfound.data.tables.identifiers import identifier
from deconfound.data.tables.keys import unified
from deconfound.data.tables.table import Roles, require_columns
from deconfound.errors import InputWarning, UserError
from deconfound.files import atomic, growing
from deconfound.files.checksums import sha256
from deconfound.files.growing import Damaged

SHARD_BYTES = 256 * 2**20
MARK_FILE = "written.json"
DTYPES = ("uint8", "uint16", "float32")


class Settled(NamedTuple):
    """A table as a screen holds it."""

    table: pd.DataFrame
    """RangeIndex."""
    roles: Roles
    """With the identifier of rows, where they have one and are not in its order."""
    notes: tuple[str, ...]
    """What was written in several ways; said as InputWarnings already."""


def settled(
    table: pd.DataFrame, roles: Roles, where: str, percentile_by: str | None = None
) -> Settled:
    """`table` with each value of its roles written in one way, and the identifier of its rows.

    Raises UserError for a column of the roles that is not there.
    """
    require_columns(table, roles.columns(), where)
    wells = [roles.well] if roles.well else []
    grouped = [] if percentile_by is None else [percentile_by]
    table, notes = unified(table, [*roles.columns(), *grouped], wells)
    for note in notes:
        warnings.warn(f"{where}: {note}", InputWarning, stacklevel=3)
    if roles.identifier is None:
        roles = roles.model_copy(update={"identifier": identifier(table, roles) or None})
    return Settled(table.reset_index(drop=True), roles, notes)


class ScreenWriter:
    """Write a screen image by image; it appears at `path` whole, or not at all.

    Use as a context manager: `append` images in the order of the table's rows, then `finish`. With
    an `identity`, what is written goes to the disk every few seconds and is kept if the process
    ends; a later writer of the same identity continues after its `rows`. A UserError leaves
    nothing. With `image_format` zarr images are packed as one Zarr array, a shard at a time.

    Raises UserError if `path` exists, if zarr is not installed, if images differ in shape or dtype
    from the first, or if the table's length differs from the number of images.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        channels: Sequence[str],
        roles: Roles,
        provenance: dict[str, Any],
        identity: str | None = None,
        image_format: ImageFormat = "npy",
    ) -> None:
        self._zarr = ZarrWriter() if image_format == "zarr" else None
        self._path = Path(path)
        self._name = name
        self._channels = tuple(channels)
        self._roles = roles
        self._provenance = provenance
        self._directory = (
            atomic.atomic_directory(self._path)
            if identity is None
            else atomic.resumable(self._path, f"{FORMAT_VERSION} {SHARD_BYTES} {name} {identity}")
        )
        self._resumes = identity is not None
        self._temporary: Path | None = None
        self._shards: ShardWriter | None = None
        self._marked = time.monotonic()
        self._finished = False

    def __enter__(self) -> Self:
        self._temporary = self._directory.__enter__()
        if self._resumes:
            try:
                self._go_on()
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shards is not None:
            self._shards.close()
        if kind is None and not self._finished:
            kind, error = RuntimeError, RuntimeError("ScreenWriter left before finish()")
            self._directory.__exit__(kind, error, None)
            raise error
        if isinstance(error, UserError) and not isinstance(error, atomic.Unwritable):
            atomic.discard(self.kept)
        self._directory.__exit__(kind, error, traceback)

    @property
    def kept(self) -> Path:
        """The folder written into; a later writer of the same identity continues in it."""
        if self._temporary is None:
            raise RuntimeError("ScreenWriter is used outside its with block")
        return self._temporary

    @property
    def rows(self) -> int:
        """Images written so far, earlier writers' included."""
        return 0 if self._shards is None else self._shards.rows

    @property
    def black(self) -> int:
        """Number of images written so far that are black: 0 in every pixel."""
        return 0 if self._shards is None else self._shards.black

    @property
    def _folder(self) -> Path:
        return self.kept / "screen" if self._resumes else self.kept

    def append(self, images: Images) -> None:
        """Add images (B, C, H, W), uint8, uint16 or float32, or profiles (B, D), float32."""
        if self._shards is None:
            self._refuse_unfit(images)
            self._shards = self._shard_writer(images.shape[1:], images.dtype)
        expected = self._shards.shape, self._shards.dtype
        if (images.shape[1:], images.dtype) != expected:
            raise UserError(
                f"images of shape {images.shape[1:]} {images.dtype} after {expected[0]} "
                f"{expected[1]}; a screen holds one shape and type, resize or convert them"
            )
        if images.ndim == 2 and not np.isfinite(images).all():
            row = int(np.flatnonzero(~np.isfinite(images).all(axis=1))[0])
            raise UserError(
                f"{self._path}: profile {row} of those added has values that are not finite; "
                "drop the feature or the row"
            )
        self._shards.append(images)
        if not self._resumes or time.monotonic() - self._marked >= growing.MARK_SECONDS:
            self._mark(self._shards)

    def finish(
        self,
        table: pd.DataFrame,
        transform: TransformName = "none",
        percentile_by: str | None = None,
    ) -> None:
        """Write the table and the index; the screen appears at the end of the with block.

        `transform` and `percentile_by` are recorded as defaults of later runs; pixels are stored as
        they are.
        """
        if self._shards is None:
            raise UserError(f"{self._path}: no images; a screen needs at least one")
        shards = self._shards.finish()
        self._mark(self._shards)
        rows = sum(shard.rows for shard in shards)
        if len(table) != rows:
            raise UserError(f"{self._path}: {len(table)} table rows but {rows} images")
        table, roles, notes = settled(table, self._roles, str(self._path), percentile_by)
        file = self._folder / "table.parquet"
        table.to_parquet(file)
        index = ScreenIndex(
            format_version=FORMAT_VERSION if self._zarr is None else ZARR_VERSION,
            name=self._name,
            channels=self._channels,
            dtype=str(self._shards.dtype),
            image_shape=self._shards.shape,
            roles=roles,
            transform=transform,
            percentile_by=percentile_by,
            rows=rows,
            table_sha256=sha256(file),
            shards=shards,
            zarr=None if self._zarr is None else self._zarr.finish(self._folder, self._shards),
            provenance=self._provenance | ({"unified": notes} if notes else {}),
        )
        index = index.model_copy(update={"sha256": index.digest()})
        (self._folder / "screen.json").write_text(index.model_dump_json(indent=2), encoding="utf-8")
        if self._resumes:
            atomic.publish(self._folder, self._path)
        self._finished = True

    def _go_on(self) -> None:
        """Continue after the last mark; start afresh if there is none or its files are damaged."""
        note = self.kept / MARK_FILE
        try:
            mark = ShardsMark.model_validate_json(note.read_bytes())
            self._shards = self._shard_writer(mark.shape, np.dtype(mark.dtype), mark)
        except (FileNotFoundError, ValueError, TypeError, Damaged):
            atomic.discard(note)
            atomic.discard(self._folder)
            self._folder.mkdir()

    def _shard_writer(
        self, shape: Sequence[int], dtype: np.dtype[Any], mark: ShardsMark | None = None
    ) -> ShardWriter:
        pack = None if self._zarr is None else self._zarr.pack
        return ShardWriter(self._folder, shape, dtype, SHARD_BYTES, mark, pack)

    def _mark(self, shards: ShardWriter) -> None:
        """Have what is written outlive the process, and remove what no later one needs."""
        if self._resumes:
            atomic.write_text(self.kept / MARK_FILE, shards.mark().model_dump_json())
            self._marked = time.monotonic()
        shards.drop_packed()

    def _refuse_unfit(self, images: Images) -> None:
        if str(images.dtype) not in DTYPES:
            raise UserError(f"pixels of type {images.dtype}; expected one of {', '.join(DTYPES)}")
        if images.ndim == 2:
            if images.dtype != np.float32 or images.shape[1] != len(self._channels):
                raise UserError(
                    f"profiles of shape {images.shape} {images.dtype}; expected "
                    f"(B, {len(self._channels)}) float32, one column for each feature"
                )
        elif images.ndim != 4 or images.shape[1] != len(self._channels):
            raise UserError(
                f"images of shape {images.shape}; expected (B, {len(self._channels)}, H, W) for "
                f"the channels {', '.join(self._channels)}"
            )
