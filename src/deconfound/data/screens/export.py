"""export: a screen as files that other programs read, and that ingest reads back equal."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from deconfound.data.readers.features import FEATURES_KEY
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import EXPORTED_PATH, read_table
from deconfound.errors import UserError
from deconfound.files.atomic import atomic_directory
from deconfound.runtime.escaping import csv_text
from deconfound.runtime.progress import Progress

FOLDER_FILES = 1000
CHUNK_BYTES = 16 * 2**20


def export(screen: Path, out: Path, *, quiet: bool = False) -> str:
    """Write `screen` into the directory `out`; returns the command that ingests `out` again.

    Images become OME-TIFF files (C, H, W) of their own type with channel names, one a row, 1,000 a
    folder, and table.csv holds the table and their paths in the column `deconfound_path`. Profiles
    become table.parquet, metadata and features, which says itself which columns are features.
    export.json holds the command, the roles and the screen's identity and provenance.

    A text that a spreadsheet would compute has "'" before it in table.csv, which ingest takes away.

    Raises UserError, and leaves nothing, if `out` exists, if a value of the table would be read
    back from CSV as missing or changed (such as the text NA), or if a feature and a column share a
    name.
    """
    opened = open_screen(screen)
    with (
        atomic_directory(out) as folder,
        Progress("export", len(opened), "rows", quiet=quiet) as progress,
    ):
        if opened.holds_profiles:
            _write_profiles(opened, folder, progress)
        else:
            _write_images(opened, folder, progress)
        command = _command(opened, Path(out))
        about = {
            "screen": opened.name,
            "screen_identity": opened.identity,
            "channels": opened.channels,
            "roles": opened.roles.model_dump(),
            "ingest": command,
            "provenance": opened.provenance,
        }
        (folder / "export.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return command


def _write_images(screen: Screen, folder: Path, progress: Progress) -> None:
    import tifffile

    paths = [f"images/{row // FOLDER_FILES:05d}/{row:08d}.ome.tif" for row in range(len(screen))]
    table = screen.table.assign(**{EXPORTED_PATH: paths})
    file = folder / "table.csv"
    file.write_text(csv_text(table, shown=False), encoding="utf-8", newline="")
    _refuse_changed(table, read_table(file), screen)
    axes = {"axes": "CYX", "Channel": {"Name": list(screen.channels)}}
    for rows in _chunks(screen):
        for row, image in zip(rows, screen.read(rows), strict=True):
            target = folder / paths[row]
            target.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(target, image, ome=True, photometric="minisblack", metadata=axes)
        progress.update(len(rows))


def _write_profiles(screen: Screen, folder: Path, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shared = [name for name in screen.channels if name in screen.table.columns]
    if shared:
        raise UserError(f"{screen.path}: {shared[0]!r} is a feature and a column; rename one")
    metadata = pa.Table.from_pandas(screen.table, preserve_index=False)
    said = {FEATURES_KEY: json.dumps(screen.channels).encode()}
    fields = [*metadata.schema, *(pa.field(name, pa.float32()) for name in screen.channels)]
    schema = pa.schema(fields, metadata=said)
    with pq.ParquetWriter(folder / "table.parquet", schema) as writer:
        for rows in _chunks(screen):
            values = screen.read(rows)
            part = metadata.slice(int(rows[0]), len(rows))
            features = [pa.array(np.ascontiguousarray(column)) for column in values.T]
            writer.write_table(pa.table([*part.columns, *features], schema=schema))
            progress.update(len(rows))


def _refuse_changed(table: pd.DataFrame, back: pd.DataFrame, screen: Screen) -> None:
    assert back.shape == table.shape
    for column, read in zip(table.columns, back.columns, strict=True):
        if str(column) != read:
            raise UserError(
                f"{screen.path}: column {column!r}, which a CSV table gives back as {read!r}; "
                "rename it"
            )
        before, after = table[column].astype("string"), back[read].astype("string")
        is_text = not pd.api.types.is_numeric_dtype(table[column].dtype)
        changed = before.notna() & (after.isna() | (is_text & (before != after).fillna(True)))
        lost = np.flatnonzero(changed.to_numpy(dtype=bool))
        if len(lost):
            found = after.iloc[lost[0]]
            raise UserError(
                f"{screen.path}: column {column!r} is {before.iloc[lost[0]]!r} in row {lost[0]} "
                f"(from 0), which a CSV table gives back as "
                f"{'missing' if pd.isna(found) else repr(found)}; rename the value"
            )


def _chunks(screen: Screen) -> list[np.ndarray]:
    each = int(np.prod(screen.image_shape)) * screen.dtype.itemsize
    step = max(1, CHUNK_BYTES // each)
    return np.split(np.arange(len(screen), dtype=np.int64), range(step, len(screen), step))


def _command(screen: Screen, out: Path) -> str:
    words = ["deconfound", "ingest"]
    if screen.holds_profiles:
        words += [str(out / "table.parquet"), "--profiles"]
    else:
        words += [str(out / "table.csv"), "--images-root", str(out), "--path-column", EXPORTED_PATH]
        words += ["--channels", *screen.channels]
        words += ["--image-format", "zarr"] if screen.index.zarr else []
    roles = screen.roles
    for option, values in [
        ("--label", [roles.label]),
        ("--environment", roles.environment),
        ("--levels", roles.levels),
        ("--well", [roles.well]),
        ("--split", [roles.split]),
    ]:
        named = [value for value in values if value]
        words += [option, *named] if named else []
    if screen.index.transform != "none":
        words += ["--transform", screen.index.transform]
    if screen.index.percentile_by:
        words += ["--percentile-by", screen.index.percentile_by]
    return shlex.join([*words, "--name", screen.name, "--out", f"{screen.name}-again"])
