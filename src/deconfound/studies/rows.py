"""Rows in memory as the source of a comparison: a screen of them, which its runs open."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from deconfound.config import validated
from deconfound.data.readers.features import Part
from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.errors import UserError
from deconfound.estimator.rows import rows_of
from deconfound.estimator.screens import named_columns, training_screen
from deconfound.files import atomic
from deconfound.studies.comparison import CompareOptions
from deconfound.studies.source import claim, ingested, made_of

if TYPE_CHECKING:
    from deconfound.estimator.rows import Data

ROLES = ("label", "environment", "levels")
"""Options that may be arrays of rows in memory, as in `Deconfounder.fit`."""
TABLE = "table.parquet"
CHUNK = 1_024
"""Rows written at a time."""


def screen_of_rows(
    data: "Data",
    out: Path,
    options: CompareOptions,
    told: Mapping[str, Any],
    table: pd.DataFrame | None,
    part: Part,
    quiet: bool,
) -> tuple[Path, CompareOptions]:
    """Where the screen of rows in memory lies, and the options for it.

    `told` holds `ROLES` as columns or arrays. A screen on disk stays where it is; of other rows the
    screen `out/screen` is made, of a DataFrame of images with the files under
    `options.images_root`. A killed call resumes. Raises UserError as `Deconfounder.fit` does for
    rows, as `ingest` does for a table, and if `out` was begun with others.
    """
    if isinstance(data, pd.DataFrame) and options.images_root is not None:
        options = validated(CompareOptions, dict(options) | dict(told), "compare")
        _ingest_table(data, out, options, quiet)
        return out / "screen", options.model_copy(update={"images_root": None})
    given = rows_of(data, table=table, part=part, named=named_columns(told))
    if options.images_root is not None:
        raise UserError(
            "compare: images_root belongs to a DataFrame with the paths of images, and "
            f"{given.name} were given; leave it out"
        )
    screen, roles = training_screen(given, told, ())
    options = options.model_copy(update=roles)
    if holds_screen(screen.path) and open_screen(screen.path).identity == screen.identity:
        return screen.path, options
    claim(out, made_of(f"{given.name} in memory", screen.identity, options))
    if not (out / "screen").exists():
        _write(screen, out / "screen")
    return out / "screen", options


def _ingest_table(table: pd.DataFrame, out: Path, options: CompareOptions, quiet: bool) -> None:
    stream = io.BytesIO()
    table.rename(columns=str).to_parquet(stream, index=False)
    content = stream.getvalue()
    claim(out, made_of("DataFrame in memory", hashlib.sha256(content).hexdigest(), options))
    if not (out / "screen").exists():
        with atomic.atomic_file(out / TABLE) as file:
            file.write_bytes(content)
        ingested(out / TABLE, out, options, quiet)


def _write(screen: Screen, out: Path) -> None:
    about = screen.name, screen.channels, screen.roles, screen.provenance
    with ScreenWriter(out, *about) as writer:
        for start in range(0, len(screen), CHUNK):
            writer.append(screen.read(range(start, min(start + CHUNK, len(screen)))))
        writer.finish(screen.table, screen.index.transform, screen.index.percentile_by)
