"""Plate maps: what was put into each well of a plate, joined to rows by plate and well."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deconfound.data.tables.joining import joined_rows
from deconfound.data.tables.keys import keys, row_and_column
from deconfound.data.tables.table import KINDS, columns_of, listed, read_table
from deconfound.errors import UserError

FORMATS = {96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Rows and columns of plates, by their wells."""
BARCODE_FILE = "barcode_platemap.csv"
WELLS = ("well_position", "well", "well_id", "well_name")
PLATES = ("plate", "assay_plate_barcode", "barcode", "plate_barcode")
MAP_NAMES = ("plate_map_name", "platemap_name", "platemap")
PREFIX = "Metadata_"
MAP, WELL = "Metadata_Plate_Map_Name", "Metadata_Well"


def with_platemaps(
    table: pd.DataFrame,
    maps: Sequence[Path],
    barcodes: Path | None,
    where: str,
    *,
    well: str | None = None,
) -> tuple[pd.DataFrame, list[Path]]:
    """`table` with the columns of its plates' maps, called Metadata_…, and the files read.

    `maps` are files, or folders of them. A map belongs to the plates that the table `barcodes`
    names, or BARCODE_FILE beside the maps; without one, to the plate in its own column, or to
    every plate if there is one map. Names of columns are found whatever their capitals. Raises
    UserError for a map that has not 96, 384 or 1,536 wells, or has one twice or off the plate; for
    a plate without a map or a well that is not on it; and as `joined_rows` does.
    """
    files, beside = _files(maps)
    barcodes = barcodes or beside
    plate = _column(table, PLATES, where, "plate")
    well = well or _column(table, WELLS, where, "well")
    read = [_map(file) for file in files]
    by = [MAP, WELL]
    rows = table.assign(**{WELL: table[well]})
    if barcodes is not None:
        names = read_table(barcodes)
        of_plate = _column(names, PLATES, str(barcodes), "plate")
        of_map = _column(names, MAP_NAMES, str(barcodes), "map name")
        named = names[[of_plate, of_map]].set_axis([plate, MAP], axis=1).drop_duplicates()
        rows = joined_rows(rows, named, [plate], where, str(barcodes), "--barcode-platemap")
    elif all(_found(one, PLATES) for one in read):
        read = [one.rename(columns={str(_found(one, PLATES)): plate}) for one in read]
        by = [plate, WELL]
    elif len(read) == 1:
        rows = rows.assign(**{MAP: read[0][MAP].iloc[0]})
    else:
        raise UserError(
            f"{where}: {len(read)} plate maps, and no table of the plates that each is of; name it "
            f"with --barcode-platemap (columns Assay_Plate_Barcode and Plate_Map_Name)"
        )
    whole = pd.concat(read, ignore_index=True)
    names_of = {name: _prefixed(name) for name in map(str, whole.columns) if name not in by}
    whole = whole.rename(columns=names_of).drop(columns=MAP if MAP not in by else [])
    found = joined_rows(rows, whole, by, where, listed(files, 3), "--platemap")
    found[WELL] = table[WELL] if WELL in table.columns else found[WELL]
    return found, [*files, *([barcodes] if barcodes else [])]


def _files(maps: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """The files of maps, those of folders too, and the table of barcodes among them."""
    files: list[Path] = []
    for given in maps:
        if not given.is_dir():
            files.append(given)
            continue
        inside = sorted(one for one in given.rglob("*") if one.suffix.lower() in KINDS)
        if not inside:
            raise UserError(f"{given}: holds no plate map; expected .csv, .tsv or .txt files")
        files += inside
    beside = [file for file in files if file.name == BARCODE_FILE]
    beside += [one.parent / BARCODE_FILE for one in maps if (one.parent / BARCODE_FILE).is_file()]
    return [file for file in files if file not in beside], beside[0] if beside else None


def _map(file: Path) -> pd.DataFrame:
    """A map with its wells in `WELL` and its name in `MAP`; raises UserError for its size."""
    read = read_table(file)
    well = _column(read, WELLS, str(file), "well")
    name = _found(read, MAP_NAMES)
    made = read.drop(columns=[well, *([name] if name else [])])
    made[WELL] = keys(read[well], well=True)
    made[MAP] = read[name] if name else file.stem
    groups = [one for one in (MAP, _found(made, PLATES)) if one]
    for of, one in made.groupby(groups, sort=False, dropna=False):
        _refuse_unfit(one[WELL], f"{file}: map {'/'.join(map(str, of))}")
    return made


def _refuse_unfit(wells: pd.Series, where: str) -> None:
    size = FORMATS.get(len(wells))
    if size is None:
        raise UserError(
            f"{where}: {len(wells):,} wells; expected 96, 384 or 1,536, a row for each well of the "
            "plate: add the empty ones, or remove rows that are no wells"
        )
    for row, well in wells.items():
        place = None if pd.isna(well) else row_and_column(str(well))
        if place is None or place[0] > size[0] or place[1] > size[1]:
            raise UserError(
                f"{where}: row {row} (from 0): well {'' if pd.isna(well) else well!r} is not on a "
                f"plate of {len(wells):,} wells ({size[0]} × {size[1]}); correct it"
            )
    twice = wells[wells.duplicated()]
    if len(twice):
        raise UserError(f"{where}: well {twice.iloc[0]!r} has two rows; expected one for each")


def _column(table: pd.DataFrame, names: Sequence[str], where: str, what: str) -> str:
    found = _found(table, names)
    if found is None:
        looked = ", ".join(names)
        raise UserError(f"{where}: no column of the {what} (looked for {looked}, with or without "
                        f"{PREFIX}); {columns_of(table)}")  # fmt: skip
    return found


def _found(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first column that has one of `names`, whatever its capitals and prefix."""
    own = {str(one).lower().removeprefix(PREFIX.lower()): str(one) for one in table.columns}
    return next((own[name] for name in names if name in own), None)


def _prefixed(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name
