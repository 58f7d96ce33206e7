"""Identifiers of the rows of a table: no identifier may occur twice."""

import numpy as np
import pandas as pd

from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

ROW_IDS = ("Metadata_RowID", "Metadata_CellID")
IMAGE_IDS = ("Metadata_ImageID", "Metadata_ImageNumber", "ImageNumber")
OBJECT_IDS = ("Metadata_ObjectNumber", "ObjectNumber")
PLACES = (
    "Metadata_Source",
    "Metadata_Series",
    "Metadata_Batch",
    "Metadata_Plate",
    "Metadata_Section",
    "Metadata_Well",
    "Metadata_Site",
    "TableNumber",
    "Metadata_TableNumber",
    "ObjectType",
    "Metadata_ObjectType",
)
"""Columns of places; each place may count its identifiers from 1 again."""


def refuse_repeated_ids(
    table: pd.DataFrame, roles: Roles, where: str, *, row_is_image: bool
) -> None:
    """Raise UserError naming the first two rows with one identifier in one place.

    An identifier is a row's or a cell's id; an image's and an object's together; or an image's
    alone where every row is an image and nothing numbers objects. A row without an identifier is
    not compared.
    """
    present = set(table.columns)
    images = [name for name in IMAGE_IDS if name in present]
    objects = [name for name in OBJECT_IDS if name in present]
    candidates = [[name] for name in ROW_IDS if name in present]
    if images and objects:
        candidates.append([images[0], objects[0]])
    elif not candidates and row_is_image and "Metadata_ImageID" in present:
        candidates.append(["Metadata_ImageID"])
    own = {*roles.environment, *roles.levels, *([roles.well] if roles.well else [])}
    place = [name for name in table.columns if name in own or name in PLACES]
    for columns in candidates:
        rows = table[columns].notna().all(axis=1).to_numpy()
        key = table.loc[rows, list(dict.fromkeys([*place, *columns]))].astype("string")
        again = np.flatnonzero(key.duplicated())
        if not len(again):
            continue
        numbers = np.flatnonzero(rows)
        same = (key == key.iloc[again[0]]) | (key.isna() & key.iloc[again[0]].isna())
        first = int(np.flatnonzero(same.fillna(False).all(axis=1))[0])
        named = " and ".join(repr(name) for name in columns)
        values = ", ".join(str(value) for value in key.iloc[again[0]][columns])
        raise UserError(
            f"{where}: rows {numbers[first]} and {numbers[again[0]]} (from 0) have the same "
            f"{named} ({values}), {len(again)} in all; drop the repeated rows, or rename the "
            "column if it is no identifier"
        )
