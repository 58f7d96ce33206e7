"""What keeps the images of a table from being read, told together with the roles that lack."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deconfound.config import nearest
from deconfound.data.ingest.roles import COLUMN, Problem
from deconfound.data.ingest.rows import RowReader
from deconfound.data.tables.proposals import path_candidates
from deconfound.errors import UserError

if TYPE_CHECKING:
    from deconfound.data.ingest.images import IngestConfig

ROWS = 16
"""Images that are read for their sizes, evenly over the table."""


def path_problem(
    error: UserError, table: pd.DataFrame, config: "IngestConfig", where: str
) -> Problem:
    """What `image_columns` found wrong, with the columns that hold the names of image files."""
    known = [str(column) for column in table.columns]
    likely = path_candidates(table)
    options: dict[str, Any] = {}
    if config.path_column is not None:
        options["path_column"] = nearest(config.path_column, known) or (likely or [COLUMN])[0]
    elif config.channel_columns:
        options["channel_columns"] = tuple(
            name if name in known else nearest(name, known) or COLUMN
            for name in config.channel_columns
        )
    elif len(likely) > 1 and "could both be" not in str(error):
        options["channel_columns"] = tuple(likely)
    elif not config.channels or not likely:
        options["path_column"] = (likely or [COLUMN])[0]
    return Problem(_without(where, error), options)


def image_problems(
    open_reader: Callable[[], RowReader], config: "IngestConfig", where: str
) -> list[Problem]:
    """What keeps the first image and some others from being read, or from being of one size."""
    sizes: dict[tuple[int, ...], None] = {}
    try:
        reader = open_reader()
        some = np.linspace(0, len(reader.files) - 1, min(ROWS, len(reader.files)))
        for row in some.astype(int).tolist():
            sizes[reader.read(row, any_size=True).shape[1:]] = None
    except UserError as error:
        return [Problem(_without(where, error), {})]
    said = (config.size, config.fit, config.crop)
    if len(sizes) == 1 or any(option is not None for option in said):
        return []
    found = " and ".join(f"{height} × {width}" for height, width in list(sizes)[:2])
    side = min(min(size) for size in sizes)
    return [Problem(f"images differ in size (H × W), such as {found}", {"size": side})]


def _without(where: str, error: UserError) -> str:
    return str(error).removeprefix(f"{where}: ")
