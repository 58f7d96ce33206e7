"""Images of a table's rows written as a screen, resumably, and the provenance they get."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from deconfound.config import Options, TransformName
from deconfound.data.ingest.fields import FieldCrops
from deconfound.data.ingest.forms import fitting, warn_of_forms
from deconfound.data.ingest.paths import FOLDER_PATH
from deconfound.data.ingest.rows import (
    FileColumn,
    ImageColumns,
    RowReader,
    image_columns,
    row_files,
)
from deconfound.data.ingest.whole import whole_images
from deconfound.data.readers.resizing import Fit, Sides
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.screens.zarr_images import ImageFormat
from deconfound.data.tables.table import (
    Roles,
    listed,
    read_table,
    refuse_divided,
    refuse_empty,
    require_columns,
)
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing, unfinished
from deconfound.files.checksums import sha256, sha256_of
from deconfound.runtime import stop
from deconfound.runtime.cluster import Cluster
from deconfound.runtime.progress import Progress
from deconfound.version import __version__

THREADS = 4
FORMS_FILE = "forms.json"
PATH_COLUMNS = ImageColumns((FileColumn(FOLDER_PATH),))
"""One file for each row, named in `Metadata_Path`."""


class IndexOptions(Options):
    """Options of a source whose images an index table lists."""

    index: str = "index.csv"
    """Table of the images, in the root: .csv, .tsv, .txt or .parquet."""
    size: int = Field(128, ge=1)
    """Resize to SIZE × SIZE pixels; the paper states no size."""
    channels: tuple[str, ...] = ()
    """Names of the channels, where one file holds all; those X of FileName_X, in this order, where
    each has its own."""


@stop.told(stop.RESUMES)
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
    name = Path(out).name
    return write_screen(reader, table, Path(out), roles, made, name=name, size=size, fit="resize")


def screen_of_index(
    root: Path,
    out: Path,
    roles: Roles,
    config: IndexOptions,
    nested: Sequence[tuple[tuple[str, ...], str]],
    **made: str,
) -> Screen:
    """Write the images that the index in `root` lists as the screen `out`, and open it.

    The index has the columns of `roles` and of `nested`: each a group's columns and the column
    within which the group lies. `made` is provenance besides the options and the checksum of the
    index. Raises UserError for a column that is missing, an empty label or level, a group that is
    divided, and as `screen_of_files` and `image_columns` do.
    """
    index = Path(root) / config.index
    table, where = read_table(index), str(index)
    of_groups = (column for inner, outer in nested for column in (*inner, outer))
    require_columns(table, (*roles.columns(), *of_groups), where)
    refuse_empty(table, roles, where)
    for inner, outer in nested:
        refuse_divided(table, inner, (outer,), where)
    columns = image_columns(table, where, channels=config.channels)
    about = {"options": config.model_dump(mode="json"), "index_sha256": sha256(index)}
    return screen_of_files(
        table,
        Path(root),
        out,
        roles,
        made | about,
        size=config.size,
        columns=columns,
        channels=config.channels,
        where=where,
    )


def write_screen(
    reader: RowReader,
    table: pd.DataFrame,
    out: Path,
    roles: Roles,
    made: dict[str, Any],
    *,
    name: str,
    size: int | None,
    fit: Fit | None = None,
    threads: int = THREADS,
    crops: FieldCrops | None = None,
    transform: TransformName = "none",
    percentile_by: str | None = None,
    image_format: ImageFormat = "npy",
    quiet: bool = False,
    cluster: Cluster | None = None,
) -> Screen:
    """Write what `reader` reads, or `crops` cuts out of it, as the screen `out`, and open it.

    Images become `size` × `size`, or with `fit` alone the height and width of the first, in the way
    that `fit` says, or by resizing. `made` is the provenance, with "options"; the numbers of rows
    and of black images, and the forms of the files, are added to it. Files of a killed call are
    kept beside `out`: the same call continues after them, and any other call with the same `out`
    removes them. Workers of a `cluster` read whole images, crops are cut here. Raises UserError for
    a full disk and as reader or crops do.
    """
    kept_bytes = sum(file.stat().st_size for file in unfinished(out).rglob("*") if file.is_file())
    first: Sides = (reader.first.shape[1], reader.first.shape[2])
    side = crops.side if crops else size
    kept: Sides = (side, side) if side else first
    sides = None if crops or (size is None and fit is None) else kept
    pixels = len(reader.first) * kept[0] * kept[1]
    # Crops lie on the disk twice while the screen is written.
    needed = len(table) * pixels * reader.first.itemsize * (1 if crops is None else 2)
    refuse_full_disk(out, needed - kept_bytes)
    identity = identity_of(made, reader.files)
    with (
        ScreenWriter(out, name, reader.channels, roles, made, identity, image_format) as writer,
        crops.spooled(writer.kept) if crops else nullcontext(),
    ):
        reader.forms.keep(writer.kept / FORMS_FILE)
        done = crops.done if crops else writer.rows
        with Progress("ingest", len(table), "images", done, quiet) as progress:
            if done:
                progress.update(0, note=f"resumed at {done:,}")
            if crops is None:
                for images in whole_images(
                    reader,
                    sides=sides,
                    fit=fit,
                    threads=threads,
                    start=writer.rows,
                    cluster=cluster,
                ):
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
        made |= reader.forms.provenance()
        if sides is not None:
            made["fit"] = fitting(sides, fit)
        writer.finish(table, transform, percentile_by)
    warn_of_forms(made, reader.where)
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


def provenance_of(
    table: Path | None, images_root: Path | None, config: Options, size: int | None
) -> dict[str, Any]:
    """The provenance known before the images are read: files, options, resizing and versions."""
    packages = ("numpy", "pandas", "pillow", "tifffile")
    return {
        "made_by": "ingest",
        "table": None if table is None else os.fspath(table),
        "table_sha256": None if table is None else sha256_of(Path(table)),
        "images_root": None if images_root is None else os.fspath(images_root),
        "options": config.model_dump(mode="json"),
        "resize": None if size is None else resizing(size),
        "versions": {
            "python": platform.python_version(),
            "deconfound": __version__,
            **{package: version(package) for package in packages},
        },
    }


def resizing(size: int) -> dict[str, Any]:
    """The provenance of images resized to `size` × `size`."""
    return {"size": size, "shrinking": "area mean", "growing": "linear"}


def identity_of(made: dict[str, Any], files: Iterable[tuple[Path, ...]]) -> str:
    """A checksum of all that the images of a screen depend on, for an ingest to go on from another.

    `made` is its provenance, of which the number of threads does not count; of every image file the
    path, the size and the time of its last change do.
    """
    options = made["options"] | {"threads": None}
    digest = hashlib.sha256(json.dumps(made | {"options": options}).encode())
    for file in dict.fromkeys(file for of_row in files for file in of_row):
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remarks(made: dict[str, Any]) -> list[str]:
    """Remarks for the user on a screen just made: dropped rows or features, black images."""
    said = [
        f"dropped {len(features)} features, {why.replace('_', ' ')}: {listed(features)}"
        for why, features in made.get("dropped", {}).items()
        if features
    ]
    crop = made.get("crop")
    if crop:
        said.append(
            f"{crop['dropped_at_border']:,} of {crop['rows_of_table']:,} cells in "
            f"{crop['fields']:,} fields lie too near the border and were dropped"
        )
    if made.get("files_without_row"):
        said.append(
            f"{made['files_without_row']:,} images in class folders have no row in the table "
            "and were left out"
        )
    if made.get("black_images"):
        said.append(
            f"warning: {made['black_images']:,} images are black (every pixel 0); check "
            "their files, or drop these rows"
        )
    return said
