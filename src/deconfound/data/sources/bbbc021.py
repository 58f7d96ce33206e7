"""BBBC021: MCF7 cells under compounds of twelve mechanisms, as one CellProfiler profile a well."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deconfound.config import Options
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.ingest.profiles import write_profiles
from deconfound.data.readers.feature_files import open_features
from deconfound.data.readers.features import feature_columns
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import Roles, read_table, refuse_divided, require_columns
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.files.checksums import sha256

SUMMARY = "BBBC021: 632 wells under 38 compounds of 12 mechanisms, profiles of CellProfiler"
PAPER = "Ljosa et al., Comparison of Methods for Image-Based Profiling of Cellular ..., 2013"

PROFILES = "ljosa_jbiomolscreen_2013_per_well_mean.csv"
IMAGES, MECHANISMS = "BBBC021_v1_image.csv", "BBBC021_v1_moa.csv"
PLATE, WELL, WEEK = "Metadata_Plate", "Metadata_Well", "Metadata_Week"
COMPOUND, CONCENTRATION = "Metadata_Compound", "Metadata_Concentration"
MECHANISM = "Metadata_Mechanism"
OF_PROFILES = {"Image_Metadata_Plate": PLATE, "Image_Metadata_Well": WELL}
OF_IMAGES = {
    "Image_Metadata_Plate_DAPI": PLATE,
    "Image_Metadata_Well_DAPI": WELL,
    "Image_Metadata_Compound": COMPOUND,
    "Image_Metadata_Concentration": CONCENTRATION,
}
OF_MECHANISMS = {"compound": COMPOUND, "concentration": CONCENTRATION, "moa": MECHANISM}
CONTROL = "DMSO"
WEEK_OF_PLATE = re.compile(r"(Week\d+)_.+")


class Config(Options):
    """BBBC021 has no options."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the well profiles in `root` as a screen at `out` and open it.

    `root` holds the three published tables, packed (`.gz`) or not: the profiles, the images, which
    say what each well was treated with, and the mechanisms of compounds at their concentrations.
    Profiles (N, D) float32; coordinates and parents are no features. Columns: `Metadata_Mechanism`
    (the label; DMSO of controls), `Metadata_Week` (the environment, read from the plate's name),
    `Metadata_Plate`, `Metadata_Well`, `Metadata_Compound`, `Metadata_Concentration` (micromolar)
    and `Metadata_Control_Type`. The levels are week and plate.

    Raises UserError for a table or column that is missing, a well that the images lack or that has
    two treatments, a treatment without a mechanism or with two, a profile of a well that has one
    already, a concentration that is no number, and a plate without a week in its name.
    """
    config = config or Config()
    refuse_existing(out)
    profiles, images, known = (_table(Path(root), name) for name in (PROFILES, IMAGES, MECHANISMS))
    opened = open_features(profiles)
    require_columns(pd.DataFrame(columns=opened.columns), OF_PROFILES, str(profiles))
    wells = opened.metadata(list(OF_PROFILES)).rename(columns=OF_PROFILES)
    again = np.flatnonzero(wells[[PLATE, WELL]].apply(keys).duplicated())
    if len(again):
        plate, well = wells[[PLATE, WELL]].iloc[again[0]]
        raise UserError(
            f"{profiles}: row {again[0]} (from 0): well {well} of plate {plate} has a profile "
            "already; expected one a well, drop the repeated rows"
        )
    wells = _joined(wells, _read(images, OF_IMAGES), [PLATE, WELL], str(profiles), str(images))
    treatment = [COMPOUND, CONCENTRATION]
    wells = _joined(wells, _read(known, OF_MECHANISMS), treatment, str(profiles), str(known))
    week = wells[PLATE].str.extract(f"^{WEEK_OF_PLATE.pattern}$")[0]
    if week.isna().any():
        row = int(np.flatnonzero(week.isna())[0])
        raise UserError(
            f"{profiles}: row {row} (from 0): plate {wells[PLATE].iloc[row]!r} names no week; "
            "expected WeekN_PLATE"
        )
    control = np.where(wells[COMPOUND] == CONTROL, NEGATIVE, "treatment")
    table = wells.assign(**{WEEK: week}).assign(**{CONTROL_TYPE: control})
    made: dict[str, Any] = {
        "made_by": "source bbbc021",
        "paper": PAPER,
        "options": config.model_dump(mode="json"),
        "sha256": {file.name: sha256(file) for file in (profiles, images, known)},
        "rows": len(table),
    }
    roles = Roles(label=MECHANISM, environment=(WEEK,), levels=(WEEK, PLATE), well=WELL)
    features = feature_columns(opened, (), str(profiles))
    return write_profiles(
        features, opened.chunks, table, Path(out), roles, made, where=str(profiles)
    )


def _table(root: Path, name: str) -> Path:
    for file in (root / f"{name}.gz", root / name):
        if file.is_file():
            return file
    raise UserError(
        f"{root / name}: no such table, nor {name}.gz; put {PROFILES}, {IMAGES} and {MECHANISMS} "
        "of BBBC021 there"
    )


def _read(file: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Some columns of a table under the screen's names; concentrations as numbers."""
    table = read_table(file)
    require_columns(table, columns, str(file))
    table = table[list(columns)].rename(columns=columns)
    number = pd.to_numeric(table[CONCENTRATION], errors="coerce")
    if number.isna().any():
        row = int(np.flatnonzero(number.isna())[0])
        raise UserError(
            f"{file}: row {row} (from 0): concentration {table[CONCENTRATION].iloc[row]!r} is no "
            "number; mend it"
        )
    return table.assign(**{CONCENTRATION: number})


def _joined(
    wells: pd.DataFrame, known: pd.DataFrame, key: list[str], where: str, where_known: str
) -> pd.DataFrame:
    """The wells, in their order, joined by `key` with the columns of `known`."""
    for column in known.columns.difference(key, sort=False):
        refuse_divided(known, key, (column,), where_known)
    left, right = (table[key].apply(keys).add_prefix("key ") for table in (wells, known))
    on = list(left.columns)
    right = pd.concat([right, known.drop(columns=key)], axis=1).drop_duplicates(on)
    found = pd.concat([wells, left], axis=1).merge(right, on=on, how="left", indicator=True)
    found = found.drop(columns=on)
    lacking = np.flatnonzero(found.pop("_merge") == "left_only")
    if len(lacking):
        named = ", ".join(
            f"{column.removeprefix('Metadata_').lower()} {wells[column].iloc[lacking[0]]}"
            for column in key
        )
        raise UserError(
            f"{where_known}: has no row of {named}, which row {lacking[0]} (from 0) of {where} is "
            f"of, {len(lacking)} such rows in all; take all tables from one release"
        )
    return found
