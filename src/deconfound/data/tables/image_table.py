"""CellProfiler's table of images: joining it to the table of cells, and its column names."""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from deconfound.data.tables.keys import keys, shown
from deconfound.data.tables.table import read_table, require_columns
from deconfound.errors import UserError

IMAGE_NUMBER = "ImageNumber"
IMAGE_METADATA = "Image_Metadata_"
_WANTED = re.compile(r"(Image_)?(FileName|PathName|Metadata)_.+")


def joined_by_image(
    cells: pd.DataFrame, image_table: Path, where: str, named: Collection[str] = ()
) -> pd.DataFrame:
    """`cells`, in their order, with the columns of the row of `image_table` of the same
    ImageNumber.

    Taken are the columns of files, folders and metadata (FileName_X, PathName_X, Metadata_X, also
    with the prefix Image_), and those `named`; a column that `cells` has stays as it is. Raises
    UserError if one of the tables has no ImageNumber, if two images have the same, or if the image
    of a cell is not there.
    """
    images = read_table(image_table)
    require_columns(cells, [IMAGE_NUMBER], where)
    require_columns(images, [IMAGE_NUMBER], str(image_table))
    numbers = keys(images[IMAGE_NUMBER])
    twice = np.flatnonzero(numbers.duplicated())
    if len(twice):
        first = np.flatnonzero(numbers == numbers.iloc[twice[0]])[0]
        raise UserError(
            f"{image_table}: rows {first} and {twice[0]} (from 0) both have {IMAGE_NUMBER} "
            f"{numbers.iloc[twice[0]]!r}; expected one row per image: ingest the cells of one "
            "CellProfiler run at a time, or number the images of all"
        )
    wanted = pd.Index(keys(cells[IMAGE_NUMBER]))
    place = np.where(wanted.isna(), -1, pd.Index(numbers).get_indexer(wanted))
    alone = np.flatnonzero(place < 0)
    if len(alone):
        raise UserError(
            f"{where}: row {alone[0]} (from 0): {IMAGE_NUMBER} "
            f"{shown(cells[IMAGE_NUMBER].iloc[alone[0]])} is not in {image_table}; {len(alone)} of "
            f"{len(cells)} rows have no image there: give the table of the same run"
        )
    taken = [
        column
        for column in images.columns
        if column not in cells.columns and (_WANTED.fullmatch(str(column)) or column in named)
    ]
    of_cells = images[taken].iloc[place].set_axis(cells.index)
    return pd.concat([cells, of_cells], axis=1)


def without_image_prefix(table: pd.DataFrame, named: Collection[str] = ()) -> pd.DataFrame:
    """`table` with `Image_Metadata_X` renamed to `Metadata_X`, unless the table has both names or
    `named` holds the first."""
    present = set(table.columns)
    shorter = {
        column: column.removeprefix("Image_")
        for column in map(str, table.columns)
        if column.startswith(IMAGE_METADATA)
        and column not in named
        and column.removeprefix("Image_") not in present
    }
    return table.rename(columns=shorter)
