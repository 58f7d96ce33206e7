"""Identifiers of rows: which columns hold them, and the refusal of one that two rows have."""

import numpy as np
import pandas as pd

from deconfound.arrays import Rows
from deconfound.data.tables.keys import keys, row_order
from deconfound.data.tables.table import LEVEL_COLUMNS, ROW_NAME, Roles
from deconfound.errors import UserError

ROW_IDS = ("Metadata_RowID", "Metadata_CellID")
IMAGE_IDS = ("Metadata_ImageID", "Metadata_ImageNumber", "ImageNumber")
OBJECT_IDS = ("Metadata_ObjectNumber", "ObjectNumber")
PLACES = (
    *LEVEL_COLUMNS,
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
    place = _places(table, roles)
    for columns in _candidates(table, row_is_image):
        rows = table[columns].notna().all(axis=1).to_numpy()
        key = table.loc[rows, list(dict.fromkeys([*place, *columns]))].apply(keys)
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


def identifier(table: pd.DataFrame, roles: Roles) -> tuple[str, ...]:
    """The columns whose keys tell every row apart: identifiers, with their place if needed.

    Empty if the table has none, if a row lacks one, or if the rows are in their order already.
    """
    for columns in _identifying(table):
        if table[columns].isna().any(axis=None):
            continue
        for whole in (columns, list(dict.fromkeys([*_places(table, roles), *columns]))):
            if not table[whole].apply(keys).duplicated().any():
                order = row_order(table, whole)
                return () if (np.diff(order) > 0).all() else tuple(whole)
    return ()


def has_identifier(table: pd.DataFrame) -> bool:
    """Whether a column of `table` is one of identifiers by its name."""
    return bool(_identifying(table))


def order_of_rows(table: pd.DataFrame, roles: Roles) -> Rows | None:
    """(N,) the rows in the order of their identifier; None where their own order counts."""
    columns = identifier(table, roles) if roles.identifier is None else roles.identifier
    return row_order(table, columns) if columns else None


def _candidates(table: pd.DataFrame, row_is_image: bool) -> list[list[str]]:
    present = set(table.columns)
    images = [name for name in IMAGE_IDS if name in present]
    objects = [name for name in OBJECT_IDS if name in present]
    found = [[name] for name in ROW_IDS if name in present]
    if images and objects:
        found.append([images[0], objects[0]])
    elif not found and row_is_image and "Metadata_ImageID" in present:
        found.append(["Metadata_ImageID"])
    return found


def _identifying(table: pd.DataFrame) -> list[list[str]]:
    names = [[ROW_NAME]] if ROW_NAME in table.columns else []
    return [*_candidates(table, row_is_image=True), *names]


def _places(table: pd.DataFrame, roles: Roles) -> list[str]:
    own = {*roles.environment, *roles.levels, *([roles.well] if roles.well else [])}
    return [name for name in table.columns if name in own or name in PLACES]
