"""The columns of a table that name image files, and the reader of the image of every row."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Pixels
from deconfound.config import did_you_mean
from deconfound.data.ingest.forms import FormsRead
from deconfound.data.ingest.paths import image_files
from deconfound.data.readers.axes import Project
from deconfound.data.readers.bounds import MAX_PIXELS
from deconfound.data.readers.image import image_and_axes
from deconfound.data.readers.tiff import ome_channel_names
from deconfound.data.tables.table import require_columns
from deconfound.errors import UserError

PATH_COLUMNS = ("Metadata_Path", "Path", "File", "FileName", "Image")
_FILE_NAME = re.compile(r"((?:Image_)?)FileName_(.+)")

Files = tuple[Path, ...]
"""Those of one row."""
CHUNK_IMAGES = 256
CHUNK_BYTES = 16 * 2**20
_COLOUR_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class FileColumn(NamedTuple):
    """A column of paths, or of file names with the column of their folders."""

    name: str
    folder: str | None = None


class ImageColumns(NamedTuple):
    """The columns that name each row's files."""

    columns: tuple[FileColumn, ...]
    """One column, or one per channel."""
    channels: tuple[str, ...] = ()
    """Channel of each column; empty where one file holds all channels."""


def image_columns(
    table: pd.DataFrame,
    where: str,
    *,
    path: str | None = None,
    per_channel: Sequence[str] = (),
    channels: Sequence[str] = (),
) -> ImageColumns:
    """The columns of image files: those given, otherwise those with one of the usual names.

    `path` is a column whose files hold all channels, `per_channel` are columns of one channel each
    (named by `channels`, or like the columns). If neither is given, the one column called as in
    `PATH_COLUMNS` (in any case) is taken, or CellProfiler's FileName_X and PathName_X, also with
    the prefix Image_; `channels` chooses the X taken and their order. Raises UserError if a column
    or channel is missing, or several forms fit.
    """
    if path is not None and per_channel:
        raise UserError(f"{where}: --path-column and --channel-columns were both given; give one")
    if path is not None:
        require_columns(table, [path], where)
        return ImageColumns((FileColumn(path),))
    if per_channel:
        require_columns(table, per_channel, where)
        if channels and len(channels) != len(per_channel):
            raise UserError(
                f"{where}: {len(per_channel)} --channel-columns, but --channels names "
                f"{len(channels)} ({', '.join(channels)}); name as many"
            )
        return ImageColumns(
            tuple(FileColumn(name) for name in per_channel), tuple(channels or per_channel)
        )
    usual = {column.lower() for column in PATH_COLUMNS}
    paths = [str(column) for column in table.columns if str(column).lower() in usual]
    by_channel = _cellprofiler(table)
    found = paths + [column.name for column in by_channel.values()]
    if len(paths) == 1 and not by_channel:
        return ImageColumns((FileColumn(paths[0]),))
    if by_channel and not paths:
        chosen = tuple(channels or by_channel)
        for name in chosen:
            if name not in by_channel:
                raise UserError(
                    f"{where}: there is no column FileName_{name} for channel {name!r} of "
                    f"--channels; {did_you_mean(name, list(by_channel))}"
                )
        return ImageColumns(tuple(by_channel[name] for name in chosen), chosen)
    what = f"columns {' and '.join(found)} could both be" if found else "there is no column of"
    raise UserError(
        f"{where}: {what} image paths; name one with --path-column, or one per channel with "
        f"--channel-columns (looked for {', '.join(PATH_COLUMNS)} and FileName_…)"
    )


def row_files(
    table: pd.DataFrame,
    columns: ImageColumns,
    root: Path,
    where: str,
    *,
    allow_outside: bool = False,
    shared: bool = False,
) -> list[tuple[Path, ...]]:
    """The files of every row below `root`, one for each of `columns`.

    Raises UserError as `image_files` does, and where a row's channels name one file twice.
    """
    by_column = [
        image_files(
            _paths(table, column),
            root,
            where,
            column=column.name,
            allow_outside=allow_outside,
            shared=shared,
        )
        for column in columns.columns
    ]
    files = list(zip(*by_column, strict=True))
    for row, of_row in enumerate(files):
        if len(set(of_row)) < len(of_row):
            raise UserError(
                f"{where}: row {row} (from 0): two of the columns "
                f"{', '.join(column.name for column in columns.columns)} name the same file; "
                "expected one file per channel, or name the one column with --path-column"
            )
    return files


def _paths(table: pd.DataFrame, column: FileColumn) -> list[object]:
    names: list[object] = table[column.name].tolist()
    if column.folder is None:
        return names
    return [
        f"{folder.rstrip('/')}/{name}"
        if isinstance(name, str) and isinstance(folder, str) and name.strip() and folder.strip()
        else name
        for folder, name in zip(table[column.folder].tolist(), names, strict=True)
    ]


def _cellprofiler(table: pd.DataFrame) -> dict[str, FileColumn]:
    found: dict[str, FileColumn] = {}
    present = {str(column) for column in table.columns}
    for column in map(str, table.columns):
        if matched := _FILE_NAME.fullmatch(column):
            prefix, channel = matched.groups()
            folder = f"{prefix}PathName_{channel}"
            found.setdefault(channel, FileColumn(column, folder if folder in present else None))
    return found


class RowReader:
    """Reads the image of a row; its channels and type must be those of row 0.

    `files` has the files of every row, one for each of `columns`. Raises UserError, naming row,
    column and file, for a file that cannot be read, and for a form other than row 0's.
    """

    def __init__(
        self,
        files: list[tuple[Path, ...]],
        columns: ImageColumns,
        where: str,
        *,
        channels: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
        rgb: bool = False,
        project: Project | None = None,
    ) -> None:
        self.files = files
        self._columns = columns
        self.where = where
        self._wanted = 1 if columns.channels else len(channels) or None
        self._max_pixels = max_pixels
        self._rgb = rgb
        self._project: Project | None = project
        self.forms = FormsRead()
        """The forms of the files read so far."""
        self.first = self._stacked(0)
        """(C, H, W), the image of row 0."""
        self.channels = columns.channels or self._channel_names(channels)

    def read(self, row: int, *, any_size: bool = False) -> Pixels:
        """(C, H, W) of `row`; its height and width are those of row 0 unless `any_size`."""
        if row == 0:
            return self.first
        pixels = self._stacked(row)
        first = self.first
        if pixels.dtype != first.dtype:
            remedy = "convert all to one pixel type"
        elif len(pixels) != len(first):
            remedy = "save all with the same channels"
            if {len(pixels), len(first)} == {1, 3}:
                remedy += ", or pass --rgb"
        elif any_size or pixels.shape == first.shape:
            return pixels
        else:
            remedy = (
                "say what is done with images of another size with --fit resize, pad or crop, or "
                "pass --size N to resize all"
            )
        raise UserError(
            f"{self.place(row)}: (C, H, W) {pixels.shape} {pixels.dtype}; expected {first.shape} "
            f"{first.dtype} as in row 0 ({self.files[0][0].name}); {remedy}"
        )

    def place(self, row: int, position: int = 0, column: str | None = None) -> str:
        """The place that a message names: table, row, column (the file's unless given) and file."""
        named = self._columns.columns
        column = column or (named[position].name if named else None)
        return (
            f"{self.where}: row {row} (from 0): {f'column {column!r}: ' if column else ''}"
            f"{self.files[row][position]}"
        )

    def _stacked(self, row: int) -> Pixels:
        planes: list[Pixels] = []
        for position, file in enumerate(self.files[row]):
            try:
                plane, taken = image_and_axes(
                    file,
                    channels=self._wanted,
                    max_pixels=self._max_pixels,
                    project=self._project,
                )
            except UserError as error:
                raise UserError(f"{self.place(row, position)}: {error}") from error
            self.forms.add(taken, (plane.shape[1], plane.shape[2]))
            if self._columns.channels and len(plane) != 1:
                raise UserError(
                    f"{self.place(row, position)}: {len(plane)} channels; expected one, as each "
                    "channel has its column: save it as grey, or project a stack with --project"
                )
            if planes and (plane.shape, plane.dtype) != (planes[0].shape, planes[0].dtype):
                raise UserError(
                    f"{self.place(row, position)}: {plane.shape[1:]} {plane.dtype}, but "
                    f"{planes[0].shape[1:]} {planes[0].dtype} in column "
                    f"{self._columns.columns[0].name!r}; save a row's channels in one size and type"
                )
            planes.append(plane)
        if len(planes) > 1:
            return np.concatenate(planes)
        if self._rgb and len(planes[0]) == 1:
            return np.repeat(planes[0], 3, axis=0)
        return planes[0]

    def _channel_names(self, channels: tuple[str, ...]) -> tuple[str, ...]:
        found = len(self.first)
        if not channels:
            file = self.files[0][0]
            colour = found == 3 and file.suffix.lower() in _COLOUR_SUFFIXES
            usual = ("R", "G", "B") if colour else tuple(f"channel_{c}" for c in range(found))
            named = None if self._rgb or file.is_dir() else ome_channel_names(file, found)
            return named or usual
        if len(channels) != found:
            raise UserError(
                f"{self.place(0)}: {found} channels, but --channels names "
                f"{len(channels)} ({', '.join(channels)}); name as many"
            )
        return channels


def images_per_chunk(image_bytes: int) -> int:
    """Number of images of `image_bytes` bytes each that are handled at a time."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
