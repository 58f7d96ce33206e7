"""A screen on disk: a table, and one image or profile per row in shards, NumPy files or Zarr."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from deconfound.arrays import Images, Rows
from deconfound.config import TransformName
from deconfound.data.screens.remote import RemoteImages
from deconfound.data.screens.shards import Shard, open_shard
from deconfound.data.screens.zarr_images import ZARR_JSON, ZarrImages, ZarrShards
from deconfound.data.tables.identifiers import has_identifier
from deconfound.data.tables.table import (
    Coded,
    Roles,
    coded,
    joined,
    joined_key,
    listed,
    require_columns,
)
from deconfound.errors import UserError
from deconfound.files.checksums import sha256
from deconfound.files.local_files import LocalFiles
from deconfound.files.object_store import ObjectStore, is_url
from deconfound.runtime.escaping import card

FORMAT_VERSION = 1
ZARR_VERSION = 2
"""Format version of a screen whose images are a Zarr array."""
INDEX_FILE, TABLE_FILE = "screen.json", "table.parquet"


class ScreenIndex(BaseModel, frozen=True, extra="forbid"):
    """The content of `screen.json`; for profiles, `channels` are the names of the features."""

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
    zarr: ZarrShards | None = Field(None, exclude_if=lambda given: given is None)
    """The array that the shards make, where they are no NumPy files."""
    provenance: dict[str, Any]
    sha256: str = ""
    """Checksum of all fields above; empty in a screen made before it was recorded."""

    def digest(self) -> str:
        """The SHA-256 of all fields but `sha256`."""
        fields = json.loads(self.model_dump_json(exclude={"sha256"}))
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Screen:
    """An opened screen; the images stay on disk and are read by memory map, or by `_reader`."""

    path: Path
    index: ScreenIndex
    table: pd.DataFrame
    """One row per image, in the order of the images; RangeIndex."""
    _shards: tuple[Images, ...] = field(repr=False)
    _starts: Rows = field(repr=False)
    _bytes: tuple[int, ...] = field(repr=False)
    """Size of each shard's file."""
    _reader: RemoteImages | ZarrImages | None = field(default=None, repr=False)
    """The images of a screen in object storage or of a Zarr array, which have no maps."""

    def __len__(self) -> int:
        return self.index.rows

    @property
    def place(self) -> Path:
        """Where the screen is, from whatever folder it is asked."""
        return self.path if is_url(self.path) else self.path.resolve()

    @property
    def name(self) -> str:
        """The screen's name."""
        return self.index.name

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names, in the order of the image axis; for profiles, names of the features."""
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
        """SHA-256 over the checksums of the table and of the images of every shard."""
        parts = [self.index.table_sha256, *(shard.identity for shard in self.index.shards)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def read(self, rows: npt.ArrayLike, out: Images | None = None) -> Images:
        """The images of `rows`, in that order: (B, C, H, W), or profiles (B, D); stored dtype.

        They are written into `out`, if it is given. Raises IndexError for a row outside 0 … N−1,
        and UserError if a shard was cut off after the screen was opened, or is damaged in Zarr.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"row outside 0 … {len(self) - 1}")
        if out is None:
            out = np.empty((len(wanted), *self.image_shape), self.dtype)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        if self._reader is not None:
            return self._reader.read(owner, wanted - self._starts[owner], out)
        for shard in np.unique(owner):
            self._refuse_cut_off(shard)
            inside = np.flatnonzero(owner == shard)
            local = wanted[inside] - self._starts[shard]
            if len(inside) == len(wanted):
                np.take(self._shards[shard], local, axis=0, out=out, mode="clip")
            else:
                out[inside] = self._shards[shard][local]
        return out

    def _refuse_cut_off(self, number: int) -> None:
        """Raise UserError if a shard is shorter now: its map then reads zeros, or ends the process.

        Reading without a map costs half as much again for images, and ten times for profiles.
        """
        file, whole = self.path / self.index.shards[number].file, self._bytes[number]
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            return  # an open map keeps what a removed file held
        if size < whole:
            raise UserError(
                f"{file}: cut off while it was read, holds {size:,} of {whole:,} bytes; restore it "
                "or make the screen again"
            )

    def coded(self, columns: Sequence[str], names: Sequence[str] | None = None) -> Coded:
        """Integer codes of a column, or of several joined by "/".

        Raises UserError for a column that the table lacks.
        """
        require_columns(self.table, columns, str(self.path))
        known = None if names is None else [joined_key(name, columns) for name in names]
        return coded(joined(self.table, columns), known)

    def _repr_html_(self) -> str:
        """What a notebook shows: rows, channels and what the columns of roles hold, at a glance."""
        unit = "profiles" if self.holds_profiles else "images"
        shape = "" if self.holds_profiles else f" of {' × '.join(map(str, self.image_shape[1:]))}"
        what = "features" if self.holds_profiles else "channels"
        label = () if self.roles.label is None else (self.roles.label,)
        rows = {
            unit: f"{len(self):,}{shape}, {self.dtype}",
            what: f"{len(self.channels):,}: {listed(self.channels)}",
        }
        for name, columns in (("labels", label), ("environments", self.roles.environment)):
            rows[name] = "none"
            if columns:
                rows[name] = f"{len(self.coded(columns).names):,} of {' / '.join(columns)}"
        rows["levels"] = " > ".join(self.roles.levels) or "none"
        return card(f"Screen {self.name}", rows)

    def check(self) -> None:
        """Verify the checksum of every shard; raises UserError naming those that differ."""
        files = self._reader.store if self._reader else LocalFiles(self.path)
        expected = {shard.file: shard.sha256 for shard in self.index.shards}
        if self.index.zarr is not None:
            expected[ZARR_JSON] = self.index.zarr.sha256
        damaged = [str(self.path / n) for n, known in expected.items() if files.sha256(n) != known]
        if damaged:
            raise UserError(
                f"{', '.join(damaged)}: checksum differs from screen.json; make the screen again"
            )


def holds_screen(path: Path) -> bool:
    """Whether a screen lies at `path`, which may be a URL such as s3://BUCKET/SCREEN."""
    if is_url(path):
        return ObjectStore(path).has(INDEX_FILE)
    return (Path(path) / INDEX_FILE).is_file()


def open_screen(path: Path) -> Screen:
    """Open a screen; `path` may be a URL such as s3://BUCKET/SCREEN.

    Raises UserError if `path` is no screen, is damaged or of another version, or if the object
    store fails.
    """
    store = ObjectStore(path) if is_url(path) else None
    path = Path(path)
    file = path / INDEX_FILE
    if not holds_screen(path):
        raise UserError(
            f"{path}: not a screen (no screen.json); make one with `deconfound ingest`, "
            "`deconfound ingest source` or `deconfound simulate`"
        )
    content = file.read_bytes() if store is None else store.read(INDEX_FILE)
    try:
        raw = json.loads(content)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version not in (FORMAT_VERSION, ZARR_VERSION):
            raise UserError(
                f"{file}: format version {version!r}; this release reads versions 1 and 2"
            )
        index = ScreenIndex.model_validate(raw)
        if (index.zarr is None) != (version == FORMAT_VERSION):
            raise ValueError("its format version is not that of its images")
        if index.sha256 not in ("", index.digest()):
            raise ValueError("its checksum differs")
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0]}); make it again") from error
    table_file = path / TABLE_FILE
    stored = table_file if store is None else io.BytesIO(store.read(TABLE_FILE))
    if _sha256(stored) != index.table_sha256:
        raise UserError(
            f"{table_file}: missing or changed since the screen was made; make it again"
        )
    maps: tuple[Images, ...] = ()
    if store is None and index.zarr is None:
        shape, dtype = index.image_shape, index.dtype
        maps = tuple(open_shard(path, shard, shape, dtype) for shard in index.shards)
    starts = np.cumsum([0, *(shard.rows for shard in index.shards)])[:-1].astype(np.int64)
    rows = pq.read_metadata(stored).num_rows
    if not rows == index.rows == sum(shard.rows for shard in index.shards):
        raise UserError(f"{path}: table and images differ in length; make the screen again")
    table = pd.read_parquet(stored)
    index = index.model_copy(update={"roles": in_order(index.roles, table)})
    sizes = tuple((path / shard.file).stat().st_size for shard in index.shards[: len(maps)])
    return Screen(path, index, table, maps, starts, sizes, _reader_of(index, path, store))


def _reader_of(
    index: ScreenIndex, path: Path, store: ObjectStore | None
) -> RemoteImages | ZarrImages | None:
    dtype = np.dtype(index.dtype)
    if index.zarr is not None:
        files = store or LocalFiles(path)
        return ZarrImages(files, index.shards, index.image_shape, dtype, index.zarr)
    return RemoteImages(store, index.shards, index.image_shape, dtype) if store else None


def _sha256(stored: Path | io.BytesIO) -> str | None:
    """The SHA-256 of a table, None if it is missing."""
    if isinstance(stored, Path):
        return sha256(stored) if stored.is_file() else None
    return hashlib.sha256(stored.getbuffer()).hexdigest()


def in_order(roles: Roles, table: pd.DataFrame) -> Roles:
    """The roles of a screen that was made: where they name no identifier and `table` has one, the
    order of the rows counts."""
    if roles.identifier is None and has_identifier(table):
        return roles.model_copy(update={"identifier": ()})
    return roles
