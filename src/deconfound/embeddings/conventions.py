"""What other programs look for in an AnnData file: names, numbers, places and mantispy's stamp."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Doubles
from deconfound.data.folds.controls import CONTROL_TYPE
from deconfound.data.ingest.fields import CENTRE_COLUMNS
from deconfound.data.tables.identifiers import IMAGE_IDS, OBJECT_IDS
from deconfound.data.tables.table import LEVEL_COLUMNS, ROW_NAME, Roles

SPATIAL = "spatial"
"""Key of obsm of the x and y of cells, as squidpy and SpatialData look for it."""
MANTISPY = "mantispy"
MANTISPY_SCHEMA = "2.0"
IMAGE_ID, OBJECT_TYPE, OBJECT_NUMBER = IMAGE_IDS[0], "Metadata_ObjectType", OBJECT_IDS[0]
CONTROL = "Metadata_Control"
"""Whether a row is a control, which mantispy wants beside Metadata_Control_Type."""
PLATE, WELL = "Metadata_Plate", "Metadata_Well"
_PLACES = (*LEVEL_COLUMNS, WELL, "Metadata_Site", "Metadata_ImageNumber", "ImageNumber")
_TEXT_OF_FEATURES = ("object", "feature_group", "feature", "channel", "radial_bin", "params")
_NUMBERS_OF_FEATURES = ("scale", "angle", "gray_levels")


def row_names(table: pd.DataFrame, about: dict[str, Any]) -> pd.Index:
    """The names of rows in obs, which no other screen has.

    They are those of the column Metadata_ObsName, where that tells the rows apart. Else they are
    made of the screen's checksum and the row's number, so that embeddings of one screen by several
    runs have the same.
    """
    if ROW_NAME in table.columns:
        own = table[ROW_NAME]
        if own.notna().all() and own.is_unique:
            return pd.Index(own.astype(str), name=ROW_NAME, dtype=object)
    of = [about.get("screen_identity"), about.get("aggregated")]
    if of[0] is None:
        of.append(int(pd.util.hash_pandas_object(table.astype(str), index=False).sum()))
    known = sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    digits = len(str(max(0, len(table) - 1)))
    return pd.Index([f"{known}-{row:0{digits}d}" for row in range(len(table))], dtype=object)


def places(table: pd.DataFrame) -> Doubles | None:
    """(N, 2) x and y of the cells in pixels; None where the table does not say those of all."""
    for pair in CENTRE_COLUMNS:
        if set(pair) <= set(table.columns):
            found = table[list(pair)].apply(pd.to_numeric, errors="coerce")
            values = found.to_numpy(dtype=np.float64)
            return values if np.isfinite(values).all() else None
    return None


def features(names: Sequence[str]) -> pd.DataFrame:
    """The table `var`: for every feature the columns that mantispy keeps of one; most are empty."""
    nothing = pd.Categorical([None] * len(names), categories=pd.Index([], dtype=object))
    var = pd.DataFrame(index=pd.Index(list(names)))
    for column in _TEXT_OF_FEATURES:
        var[column] = nothing
    for column in _NUMBERS_OF_FEATURES:
        var[column] = np.nan
    var["is_feature"] = True
    return var.assign(feature_kind=pd.Categorical(["embedding"] * len(names)))


def stamped(
    table: pd.DataFrame, roles: Roles, about: dict[str, Any]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any] | None]:
    """The columns that mantispy needs beside those of `table`, and what `uns["mantispy"]` holds.

    A row is a well where plate and well, within the levels, tell the rows apart; an aggregate in
    what `aggregate` wrote, unless plate and well were kept apart; else an object. None for objects
    whose image and number do not tell them apart, which mantispy refuses.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    if CONTROL_TYPE in table.columns and CONTROL not in table.columns:
        kind = table[CONTROL_TYPE].astype("string")
        columns[CONTROL] = kind.ne("treatment").fillna(True).to_numpy(dtype=bool)
    resolution, grouped_by = _resolution(table, roles, about)
    if resolution == "object":
        columns |= _of_objects(table, roles)
        pair = {name: columns.get(name, table.get(name)) for name in (IMAGE_ID, OBJECT_NUMBER)}
        if pd.DataFrame(pair).astype(str).duplicated().any():
            return {}, None
    stamp: dict[str, Any] = {
        "schema_version": MANTISPY_SCHEMA,
        "resolution": resolution,
        "grouped_by": np.array(grouped_by, dtype=object),
    }
    if roles.label in table.columns:
        stamp["perturbation"] = {"column": roles.label}
        if CONTROL_TYPE in table.columns:
            stamp["perturbation"]["control_column"] = CONTROL_TYPE
    return columns, stamp


def _resolution(table: pd.DataFrame, roles: Roles, about: dict[str, Any]) -> tuple[str, list[str]]:
    own = [name for name in (*LEVEL_COLUMNS, *roles.levels) if name in table.columns]
    within = list(dict.fromkeys([*own, PLATE, WELL]))
    in_wells = {PLATE, WELL} <= set(table.columns) and table[WELL].notna().all()
    if in_wells and not table[within].astype(str).duplicated().any():
        return "well", within
    if "aggregated" in about:
        named = ("Metadata_Gene", "Metadata_sgRNA", *roles.environment)
        grouped = (one if one in table.columns else f"Metadata_{one}" for one in named)
        return "aggregate", [one for one in dict.fromkeys(grouped) if one in table.columns]
    return "object", []


def _of_objects(table: pd.DataFrame, roles: Roles) -> dict[str, npt.NDArray[Any]]:
    """The identity of objects that `table` lacks: their image, type and number in the image."""
    own = (*roles.levels, *([roles.well] if roles.well else []), *_PLACES)
    found = [name for name in dict.fromkeys(own) if name in table.columns]
    columns: dict[str, npt.NDArray[Any]] = {}
    if IMAGE_ID not in table.columns:
        image = pd.Series("", index=table.index, dtype="string")
        for name in found:
            image = image.str.cat(table[name].astype("string").fillna(""), sep="|")
        columns[IMAGE_ID] = image.str.removeprefix("|").to_numpy(dtype=object)
    if OBJECT_TYPE not in table.columns:
        columns[OBJECT_TYPE] = np.full(len(table), "Cell", dtype=object)
    if OBJECT_NUMBER not in table.columns:
        images = pd.Series(columns.get(IMAGE_ID, table.get(IMAGE_ID))).astype(str)
        columns[OBJECT_NUMBER] = images.groupby(images, sort=False).cumcount().to_numpy() + 1
    return columns
