"""Make a screen from the user's own images: a table of image files, or class folders."""

import hashlib
import os
import platform
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from deconfound.atomic import refuse_existing
from deconfound.config import Options
from deconfound.data.image_file import Pixels, read_image, resized
from deconfound.data.image_paths import FOLDER_PATH, class_folders, image_files, path_column
from deconfound.data.screen import Screen, ScreenWriter, open_screen
from deconfound.data.table import Roles, read_table, require_columns
from deconfound.errors import UserError
from deconfound.progress import Progress

LABEL_COLUMNS = (
    "Metadata_Perturbation",
    "Metadata_Gene",
    "Metadata_sgRNA",
    "Metadata_JCP2022",
    "Metadata_Label",
)
LEVEL_COLUMNS = (
    "Metadata_Source",
    "Metadata_Series",
    "Metadata_Batch",
    "Metadata_Plate",
    "Metadata_Section",
)
ENVIRONMENT_COLUMN = "Metadata_Environment"
WELL_COLUMN = "Metadata_Well"
SPLIT_COLUMN = "Metadata_Split"
CHUNK_IMAGES = 256
CHUNK_BYTES = 16 * 2**20


class IngestConfig(Options):
    """How a table and its images become a screen."""

    path_column: str | None = None
    """Column of image paths, relative to the images' folder; looked up if not given (Metadata_Path,
    Path, File, FileName or Image)."""
    label: str | None = None
    """Column to predict; if not given, the first present of Metadata_Perturbation, Metadata_Gene,
    Metadata_sgRNA, Metadata_JCP2022, Metadata_Label."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; Metadata_Environment, or else the levels."""
    levels: tuple[str, ...] = ()
    """Nested levels, outermost first; if not given, those present of Metadata_Source,
    Metadata_Series, Metadata_Batch, Metadata_Plate, Metadata_Section, or else the environment."""
    well: str | None = None
    """Column of the well; Metadata_Well where there is one."""
    split: str | None = None
    """Column of a given split (train, val, id_test, test); Metadata_Split where there is one."""
    channels: tuple[str, ...] = ()
    """Channel names; R, G, B for colour PNG and JPEG, else channel_0, channel_1 … The alpha
    channel of a PNG is dropped unless it is named here."""
    name: str | None = None
    """The screen's name; the output folder's name if not given."""
    size: int | None = Field(None, ge=1)
    """Resize every image to SIZE × SIZE: area mean to shrink, linear to enlarge."""
    rgb: bool = False
    """Repeat grey images to three channels, where a data set mixes grey and colour."""
    max_pixels: int = Field(2**26, ge=1)
    """Largest image read, height × width × channels."""
    allow_outside: bool = False
    """Accept paths and symbolic links that lead out of the images' folder."""
    threads: int = Field(4, ge=1)
    """Files read at a time."""


def ingest(
    table: Path | None,
    images_root: Path,
    out: Path,
    *,
    config: IngestConfig | None = None,
    quiet: bool = False,
) -> Screen:
    """Write the images below `images_root` as a screen at `out` and open it.

    `table` has one row per image file (.csv, .tsv or .parquet); without one the images lie in
    ENVIRONMENT/LABEL/file and the table gets the columns Metadata_Environment, Metadata_Label and
    Metadata_Path. Pixels keep their type (uint8, uint16 or float32). Memory stays bounded whatever
    the number of images. Unless `quiet`, the terminal shows the rate and the time left.

    Raises UserError, and leaves nothing at `out`, for a role without a column, an empty label,
    environment or level, a path that is missing or leaves `images_root`, a file that cannot be
    read, or one whose channels, size or type differ from the first; each names row and file.
    """
    config = config or IngestConfig()
    out = Path(out)
    images_root = Path(images_root)
    refuse_existing(out)
    if table is None:
        where = str(images_root)
        metadata = class_folders(images_root)
        column = FOLDER_PATH
    else:
        where = str(table)
        metadata = read_table(table)
        column = path_column(metadata, config.path_column, where)
    roles = resolve_roles(metadata, config, where)
    refuse_empty(metadata, roles, where)
    files = image_files(
        metadata[column].tolist(), images_root, where, allow_outside=config.allow_outside
    )
    reader = _Reader(files, where, config)
    refuse_full_disk(out, reader.first.nbytes * len(files))
    provenance = provenance_of(table, images_root, config, len(files))
    name = config.name or out.name
    with (
        ScreenWriter(out, name, reader.channels, roles, provenance) as writer,
        Progress("ingest", len(files), "images", quiet=quiet) as progress,
    ):
        for images in reader.chunks():
            writer.append(images)
            progress.update(len(images))
        writer.finish(metadata)
    return open_screen(out)


def resolve_roles(table: pd.DataFrame, config: IngestConfig, where: str) -> Roles:
    """The columns' roles: those given, else the field's usual names where the table has them.

    Raises UserError for a column that is not there, or if label or environment remain without one.
    """
    present = set(table.columns)
    label = config.label or next((name for name in LABEL_COLUMNS if name in present), None)
    usual = tuple(name for name in LEVEL_COLUMNS if name in present)
    if ENVIRONMENT_COLUMN in present:
        environment = config.environment or (ENVIRONMENT_COLUMN,)
    else:
        environment = config.environment or config.levels or usual
    if label is None:
        raise UserError(
            f"{where}: no label column (looked for {', '.join(LABEL_COLUMNS)}); name one with "
            "--label"
        )
    if not environment:
        raise UserError(
            f"{where}: no environment column (looked for {ENVIRONMENT_COLUMN}, "
            f"{', '.join(LEVEL_COLUMNS)}); name one with --environment"
        )
    roles = Roles(
        label=label,
        environment=environment,
        levels=config.levels or usual or environment,
        well=config.well or (WELL_COLUMN if WELL_COLUMN in present else None),
        split=config.split or (SPLIT_COLUMN if SPLIT_COLUMN in present else None),
    )
    require_columns(table, roles.columns(), where)
    return roles


def refuse_empty(table: pd.DataFrame, roles: Roles, where: str) -> None:
    """Raise UserError naming the first rows without a label, an environment or a level."""
    wanted = dict.fromkeys([str(roles.label), *roles.environment, *roles.levels])
    for column in wanted:
        text = table[column].astype("string").str.strip()
        empty = np.flatnonzero(text.isna() | (text == ""))
        if len(empty):
            rows = ", ".join(str(row) for row in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise UserError(
                f"{where}: column {column!r} is empty in rows {rows}{more} (from 0); fill it in, "
                "or drop these rows"
            )


class _Reader:
    """Reads the files in order, several at a time, and holds each to the first one's form."""

    def __init__(self, files: list[Path], where: str, config: IngestConfig) -> None:
        self._files = files
        self._where = where
        self._config = config
        self.first = self._read(0)
        self.channels = self._channel_names()

    def chunks(self) -> Iterator[Pixels]:
        """The images in order, (B, C, H, W) at a time."""
        per_chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // self.first.nbytes))
        starts = iter(range(0, len(self._files), per_chunk))
        pending: deque[Future[Pixels]] = deque()
        pool = ThreadPoolExecutor(self._config.threads)
        try:
            for start in starts:
                pending.append(pool.submit(self._chunk, start, start + per_chunk))
                if len(pending) > 2 * self._config.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _chunk(self, start: int, stop: int) -> Pixels:
        rows = range(start, min(stop, len(self._files)))
        images = np.empty((len(rows), *self.first.shape), self.first.dtype)
        for position, row in enumerate(rows):
            pixels = self._read(row)
            if (pixels.shape, pixels.dtype) != (self.first.shape, self.first.dtype):
                self._refuse_other_form(row, pixels)
            images[position] = pixels
        return images

    def _read(self, row: int) -> Pixels:
        wanted = len(self._config.channels) or None
        try:
            pixels = read_image(
                self._files[row], channels=wanted, max_pixels=self._config.max_pixels
            )
        except UserError as error:
            raise UserError(f"{self._place(row)}: {error}") from error
        if self._config.size is not None:
            pixels = resized(pixels, self._config.size)
        if self._config.rgb and len(pixels) == 1:
            pixels = np.repeat(pixels, 3, axis=0)
        return pixels

    def _place(self, row: int) -> str:
        return f"{self._where}: row {row} (from 0): {self._files[row]}"

    def _channel_names(self) -> tuple[str, ...]:
        found = len(self.first)
        if not self._config.channels:
            colour = found == 3 and self._files[0].suffix.lower() in (".png", ".jpg", ".jpeg")
            return ("R", "G", "B") if colour else tuple(f"channel_{c}" for c in range(found))
        if len(self._config.channels) != found:
            raise UserError(
                f"{self._place(0)}: {found} channels, but --channels names "
                f"{len(self._config.channels)} ({', '.join(self._config.channels)}); name as many"
            )
        return self._config.channels

    def _refuse_other_form(self, row: int, pixels: Pixels) -> None:
        first = self.first
        if pixels.dtype != first.dtype:
            remedy = "convert all to one pixel type"
        elif len(pixels) != len(first):
            remedy = "save all with the same channels"
            if {len(pixels), len(first)} == {1, 3}:
                remedy += ", or pass --rgb"
        else:
            remedy = "pass --size N to resize all"
        raise UserError(
            f"{self._place(row)}: (C, H, W) {pixels.shape} {pixels.dtype}; expected {first.shape} "
            f"{first.dtype} as in row 0 ({self._files[0].name}); {remedy}"
        )


def refuse_full_disk(out: Path, needed: int) -> None:
    """Raise UserError if the disk of `out` has less than `needed` bytes free."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{out}: needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; make room, "
            "choose another --out, or shrink the images with --size"
        )


def provenance_of(
    table: Path | None, images_root: Path | None, config: IngestConfig, rows: int
) -> dict[str, Any]:
    """Which files and options a screen of `rows` rows was made of, and by which versions."""
    sha256 = None
    if table is not None:
        with Path(table).open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    resize = None
    if config.size is not None:
        resize = {"size": config.size, "shrinking": "area mean", "growing": "linear"}
    packages = ("deconfound", "numpy", "pandas", "pillow", "tifffile")
    return {
        "made_by": "ingest",
        "table": None if table is None else os.fspath(table),
        "table_sha256": sha256,
        "images_root": None if images_root is None else os.fspath(images_root),
        "rows": rows,
        "options": config.model_dump(mode="json"),
        "resize": resize,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
