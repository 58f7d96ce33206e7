"""Which columns of a table name the image files, and the channels that the files hold."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deconfound.config import did_you_mean
from deconfound.data.ingest.paths import image_files
from deconfound.data.tables.table import require_columns
from deconfound.errors import UserError

PATH_COLUMNS = ("Metadata_Path", "Path", "File", "FileName", "Image")
_FILE_NAME = re.compile(r"((?:Image_)?)FileName_(.+)")


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
        matched = _FILE_NAME.fullmatch(column)
        if matched:
            prefix, channel = matched.groups()
            folder = f"{prefix}PathName_{channel}"
            found.setdefault(channel, FileColumn(column, folder if folder in present else None))
    return found
