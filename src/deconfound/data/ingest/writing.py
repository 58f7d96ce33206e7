"""Images of a table's rows, read and written as a screen, resumably."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.arrays import Pixels
from deconfound.config import TransformName
from deconfound.data.ingest.columns import FileColumn, ImageColumns, row_files
from deconfound.data.ingest.fields import FieldCrops
from deconfound.data.ingest.paths import FOLDER_PATH
from deconfound.data.ingest.provenance import identity_of
from deconfound.data.ingest.rows import RowReader, whole_images
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing, unfinished
from deconfound.runtime.progress import Progress

THREADS = 4
PATH_COLUMNS = ImageColumns((FileColumn(FOLDER_PATH),))
"""One file a row, named in `Metadata_Path`."""


@contextmanager
def kept_if_stopped() -> Iterator[None]:
    """Say, where a signal ends the work, that it need not be done again."""
    try:
        yield
    except KeyboardInterrupt as request:
        raise type(request)("stopped; the same command resumes") from request


@kept_if_stopped()
def screen_of_files(
    table: pd.DataFrame,
    root: Path,
    out: Path,
    roles: Roles,
    made: dict[str, Any],
    *,
    size: int,
    rgb: bool = False,
    columns: ImageColumns = PATH_COLUMNS,
    channels: tuple[str, ...] = (),
    where: str | None = None,
) -> Screen:
    """Write the files named in `columns` of `table`, Metadata_Path alone, and open the screen.

    The files lie below `root`. `made` is the provenance, with "options". Images become `size` ×
    `size`, grey ones of three channels if `rgb`. `channels` names those of files that hold all;
    messages call the table `where`, or `root`. A killed or stopped call is resumed by the same
    call. Raises UserError if `out` exists and, naming row and file, for a file that is missing or
    cannot be read.
    """
    refuse_existing(out)
    where = where or str(root)
    files = row_files(table, columns, root, where)
    reader = RowReader(files, columns, where, channels=channels, rgb=rgb)
    return write_screen(reader, table, Path(out), roles, made, name=Path(out).name, size=size)


def write_screen(
    reader: RowReader,
    table: pd.DataFrame,
    out: Path,
    roles: Roles,
    made: dict[str, Any],
    *,
    name: str,
    size: int | None,
    threads: int = THREADS,
    crops: FieldCrops | None = None,
    transform: TransformName = "none",
    percentile_by: str | None = None,
    quiet: bool = False,
) -> Screen:
    """Write what `reader` reads, or `crops` cuts out of it, as the screen `out`, and open it.

    `made` is the provenance, with "options"; the numbers of rows and of black images are added to
    it. What a killed call has written is kept beside `out`: the same call goes on behind it, and
    any other with the same `out` removes it. Raises UserError for a full disk and for what reader
    or crops refuse.
    """
    kept_bytes = sum(file.stat().st_size for file in unfinished(out).rglob("*") if file.is_file())
    side = crops.side if crops else size
    refuse_full_disk(out, _bytes_needed(len(table), reader.first, side, crops) - kept_bytes)
    identity = identity_of(made, reader.files)
    with (
        ScreenWriter(out, name, reader.channels, roles, made, identity) as writer,
        crops.spooled(writer.kept) if crops else nullcontext(),
    ):
        done = crops.done if crops else writer.rows
        with Progress("ingest", len(table), "images", done, quiet) as progress:
            if done:
                progress.update(0, note=f"resumed at {done:,}")
            if crops is None:
                for images in whole_images(reader, size=size, threads=threads, start=writer.rows):
                    writer.append(images)
                    progress.update(len(images))
            else:
                for count in crops.cut():
                    progress.update(count)
                for images in crops.kept(start=writer.rows):
                    writer.append(images)
                made["crop"] = crops.summary()
                table = table[crops.inside]
        made["rows"] = len(table)
        made["black_images"] = writer.black
        writer.finish(table, transform, percentile_by)
    return open_screen(out)


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


def _bytes_needed(rows: int, first: Pixels, side: int | None, crops: FieldCrops | None) -> int:
    pixels = first.size if side is None else len(first) * side * side
    # Crops lie on the disk twice while the screen is written.
    return rows * pixels * first.itemsize * (1 if crops is None else 2)
