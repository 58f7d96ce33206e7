"""A screen on disk: a table, and one image or profile per row in plain NumPy shards."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from deconfound import atomic
from deconfound.config import TransformName
from deconfound.data import growing
from deconfound.data.growing import Damaged
from deconfound.data.shards import Shard, ShardsMark, ShardWriter, sha256
from deconfound.data.table import Coded, Roles, coded, joined, require_columns
from deconfound.errors import UserError

FORMAT_VERSION = 1
SHARD_BYTES = 256 * 2**20
MARK_FILE = "written.json"
DTYPES = ("uint8", "uint16", "float32")

Images = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


class ScreenIndex(BaseModel):
    """What `screen.json` holds; of profiles, `channels` are the names of the features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    name: str
    channels: tuple[str, ...]
    dtype: str
    image_shape: tuple[int, ...]
    roles: Roles
    transform: TransformName = "none"
    """Intensity transform that runs on the screen use unless told otherwise; pixels are stored
    without it."""
    percentile_by: str | None = None
    """Column whose groups share percentiles, for the transform percentile."""
    rows: int
    table_sha256: str
    shards: tuple[Shard, ...]
    provenance: dict[str, Any]
    sha256: str = ""
    """Of everything above; empty in a screen that was made before this was recorded."""

    def digest(self) -> str:
        """The SHA-256 of all fields but `sha256`."""
        fields = json.loads(self.model_dump_json(exclude={"sha256"}))
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Screen:
    """An opened screen; the images stay on disk and are read by memory map."""

    path: Path
    index: ScreenIndex
    table: pd.DataFrame
    """One row per image, in the order of the images; RangeIndex."""
    _shards: tuple[Images, ...] = field(repr=False)
    _starts: Rows = field(repr=False)

    def __len__(self) -> int:
        return self.index.rows

    @property
    def name(self) -> str:
        """The screen's name."""
        return self.index.name

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names, in the order of the image axis; of profiles the names of the features."""
        return self.index.channels

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W), or of one profile, (D,)."""
        return self.index.image_shape

    @property
    def holds_profiles(self) -> bool:
        """Whether the rows are profiles, vectors of features, and not images."""
        return len(self.image_shape) == 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type as stored: uint8, uint16 or float32."""
        return np.dtype(self.index.dtype)

    @property
    def roles(self) -> Roles:
        """The default roles of the columns."""
        return self.index.roles

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the screen came from and how it was made."""
        return self.index.provenance

    @property
    def identity(self) -> str:
        """SHA-256 over the checksums of the table and of every shard."""
        parts = [self.index.table_sha256, *(shard.sha256 for shard in self.index.shards)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def read(self, rows: npt.ArrayLike) -> Images:
        """The images of `rows`, in that order: (B, C, H, W), or profiles (B, D); stored dtype.

        Raises IndexError for a row outside 0 … N−1.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"row outside 0 … {len(self) - 1}")
        out = np.empty((len(wanted), *self.image_shape), self.dtype)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(owner):
            inside = np.flatnonzero(owner == shard)
            local = wanted[inside] - self._starts[shard]
            if len(inside) == len(wanted):
                np.take(self._shards[shard], local, axis=0, out=out, mode="clip")
            else:
                out[inside] = self._shards[shard][local]
        return out

    def coded(self, columns: Sequence[str], names: Sequence[str] | None = None) -> Coded:
        """Integer codes of a column, or of several joined by "/".

        Raises UserError for a column that the table lacks.
        """
        require_columns(self.table, columns, str(self.path))
        return coded(joined(self.table, columns), names)

    def check(self) -> None:
        """Verify the checksum of every shard; raises UserError naming those that differ."""
        files = [(self.path / shard.file, shard.sha256) for shard in self.index.shards]
        damaged = [str(file) for file, expected in files if sha256(file) != expected]
        if damaged:
            raise UserError(
                f"{', '.join(damaged)}: checksum differs from screen.json; make the screen again"
            )


class ScreenWriter:
    """Write a screen image by image; it appears at `path` whole, or not at all.

    Use as a context manager: `append` images in the order of the table's rows, then `finish`.
    With an `identity`, what is written goes to the disk every few seconds and is kept if the
    process ends; a later writer of the same identity goes on behind its `rows`. A mistake of the
    user's leaves nothing. Raises UserError if `path` exists, if images differ in shape or dtype
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
    ) -> None:
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
        """The folder that a later writer of the same identity finds again."""
        if self._temporary is None:
            raise RuntimeError("ScreenWriter is used outside its with block")
        return self._temporary

    @property
    def rows(self) -> int:
        """Images written so far, earlier writers' included."""
        return 0 if self._shards is None else self._shards.rows

    @property
    def black(self) -> int:
        """How many of them are black, 0 in every pixel."""
        return 0 if self._shards is None else self._shards.black

    @property
    def _folder(self) -> Path:
        return self.kept / "screen" if self._resumes else self.kept

    def append(self, images: Images) -> None:
        """Add images (B, C, H, W), uint8, uint16 or float32, or profiles (B, D), float32.

        All of one shape and dtype.
        """
        if self._shards is None:
            self._refuse_unfit(images)
            self._shards = ShardWriter(self._folder, images.shape[1:], images.dtype, SHARD_BYTES)
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
        if self._resumes and time.monotonic() - self._marked >= growing.MARK_SECONDS:
            self._mark(self._shards)

    def finish(
        self,
        table: pd.DataFrame,
        transform: TransformName = "none",
        percentile_by: str | None = None,
    ) -> None:
        """Write the table and the index; the screen appears at the end of the with block.

        `transform` and `percentile_by` are recorded for the runs to come; pixels are stored as
        they are.
        """
        if self._shards is None:
            raise UserError(f"{self._path}: no images; a screen needs at least one")
        shards = self._shards.finish()
        if self._resumes:
            self._mark(self._shards)
        rows = sum(shard.rows for shard in shards)
        if len(table) != rows:
            raise UserError(f"{self._path}: {len(table)} table rows but {rows} images")
        require_columns(table, self._roles.columns(), str(self._path))
        file = self._folder / "table.parquet"
        table.reset_index(drop=True).to_parquet(file)
        index = ScreenIndex(
            format_version=FORMAT_VERSION,
            name=self._name,
            channels=self._channels,
            dtype=str(self._shards.dtype),
            image_shape=self._shards.shape,
            roles=self._roles,
            transform=transform,
            percentile_by=percentile_by,
            rows=rows,
            table_sha256=sha256(file),
            shards=shards,
            provenance=self._provenance,
        )
        index = index.model_copy(update={"sha256": index.digest()})
        (self._folder / "screen.json").write_text(index.model_dump_json(indent=2), encoding="utf-8")
        if self._resumes:
            atomic.publish(self._folder, self._path)
        self._finished = True

    def _go_on(self) -> None:
        """Go on behind what the last mark says, or start afresh where that is not there."""
        note = self.kept / MARK_FILE
        try:
            mark = ShardsMark.model_validate_json(note.read_bytes())
            self._shards = ShardWriter(
                self._folder, mark.shape, np.dtype(mark.dtype), SHARD_BYTES, mark
            )
        except (FileNotFoundError, ValueError, TypeError, Damaged):
            atomic.discard(note)
            atomic.discard(self._folder)
            self._folder.mkdir()

    def _mark(self, shards: ShardWriter) -> None:
        atomic.write_text(self.kept / MARK_FILE, shards.mark().model_dump_json())
        self._marked = time.monotonic()

    def _refuse_unfit(self, images: Images) -> None:
        if str(images.dtype) not in DTYPES:
            raise UserError(f"pixels of type {images.dtype}; expected one of {', '.join(DTYPES)}")
        if images.ndim == 2:
            self._refuse_unfit_profiles(images)
        elif images.ndim != 4 or images.shape[1] != len(self._channels):
            raise UserError(
                f"images of shape {images.shape}; expected (B, {len(self._channels)}, H, W) for "
                f"the channels {', '.join(self._channels)}"
            )

    def _refuse_unfit_profiles(self, profiles: Images) -> None:
        if profiles.dtype != np.float32 or profiles.shape[1] != len(self._channels):
            raise UserError(
                f"profiles of shape {profiles.shape} {profiles.dtype}; expected "
                f"(B, {len(self._channels)}) float32, one column for each feature"
            )


def open_screen(path: Path) -> Screen:
    """Open a screen; raises UserError if `path` is none, or is damaged or of another version."""
    path = Path(path)
    file = path / "screen.json"
    if not file.is_file():
        raise UserError(
            f"{path}: not a screen (no screen.json); make one with `deconfound ingest`, "
            "`deconfound source` or `deconfound simulate`"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(f"{file}: format version {version!r}; this release reads version 1")
        index = ScreenIndex.model_validate(raw)
        if index.sha256 not in ("", index.digest()):
            raise ValueError("its checksum differs")
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0]}); make it again") from error
    table_file = path / "table.parquet"
    if not table_file.is_file() or sha256(table_file) != index.table_sha256:
        raise UserError(
            f"{table_file}: missing or changed since the screen was made; make it again"
        )
    shards = tuple(_open_shard(path, shard, index) for shard in index.shards)
    starts = np.cumsum([0, *(shard.rows for shard in index.shards)])[:-1].astype(np.int64)
    table = pd.read_parquet(table_file)
    if not len(table) == index.rows == sum(shard.rows for shard in index.shards):
        raise UserError(f"{path}: table and images differ in length; make the screen again")
    return Screen(path, index, table, shards, starts)


def _open_shard(path: Path, shard: Shard, index: ScreenIndex) -> Images:
    file = path / shard.file
    if Path(shard.file).name != shard.file:
        raise UserError(f"{path}: shard {shard.file!r} lies outside the screen; make it again")
    try:
        images: Images = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy has no one exception for a damaged header
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}: missing or cut short ({reason}); make the screen again"
        ) from error
    if images.shape != (shard.rows, *index.image_shape) or str(images.dtype) != index.dtype:
        raise UserError(f"{file}: holds {images.shape} {images.dtype}, screen.json says otherwise")
    return images
