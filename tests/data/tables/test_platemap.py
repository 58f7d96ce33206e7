"""Plate maps of the Broad and of CellProfiler, joined to rows by plate and well."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.platemap import FORMATS


def wells_of(size: int) -> list[str]:
    rows, columns = FORMATS[size]
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *(f"A{one}" for one in "ABCDEF")]
    return [f"{letters[r]}{c + 1:02d}" for r in range(rows) for c in range(columns)]


def a_map(name: str, size: int = 96, **columns: object) -> pd.DataFrame:
    wells = wells_of(size)
    compounds = [f"{name}-{number % 3}" for number in range(size)]
    made = {"plate_map_name": name, "well_position": wells, "broad_sample": compounds}
    return pd.DataFrame(made | {"mmoles_per_liter": "0.5"} | columns)


def profiles(folder: Path, plates: tuple[str, ...] = ("101", "102"), size: int = 96) -> Path:
    wells = wells_of(size)[:6]
    table = pd.DataFrame(
        [(plate, well) for plate in plates for well in wells],
        columns=["Metadata_Plate", "Metadata_Well"],
    )
    table["Cells_Area"] = np.arange(len(table)) ** 2.0
    table.to_csv(folder / "profiles.csv", index=False)
    return folder / "profiles.csv"


def ingested(folder: Path, *words: object) -> Screen:
    files = [folder / "profiles.csv", "--profiles", "--out", folder / "s", "--quiet"]
    label = ["--label", "Metadata_broad_sample"]
    cli.main(["ingest", *map(str, files), *label, *map(str, words)])
    return open_screen(folder / "s")


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        ingested(folder, *words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def broads_folder(folder: Path, size: int = 96) -> Path:
    """metadata/platemaps/BATCH: barcode_platemap.csv and platemap/MAP.txt, as the Broad keeps."""
    batch = folder / "2026_01_01_Batch1"
    (batch / "platemap").mkdir(parents=True)
    for name in ("m1", "m2"):
        a_map(name, size).to_csv(batch / "platemap" / f"{name}.txt", sep="\t", index=False)
    barcodes = {"Assay_Plate_Barcode": ["101", "102"], "Plate_Map_Name": ["m1", "m2"]}
    pd.DataFrame(barcodes).to_csv(batch / "barcode_platemap.csv", index=False)
    return batch


@pytest.mark.parametrize("size", FORMATS)
def test_maps_are_joined_by_barcode(size: int, tmp_path: Path) -> None:
    profiles(tmp_path, size=size)
    batch = broads_folder(tmp_path, size)
    table = ingested(tmp_path, "--platemap", batch).table
    expected = [f"{m}-{n % 3}" for m in ("m1", "m2") for n in range(6)]
    assert table["Metadata_broad_sample"].tolist() == expected
    assert table["Metadata_Plate_Map_Name"].tolist() == ["m1"] * 6 + ["m2"] * 6
    assert set(table["Metadata_mmoles_per_liter"]) == {"0.5"}


def test_maps_and_barcodes_can_be_named(tmp_path: Path) -> None:
    profiles(tmp_path)
    batch = broads_folder(tmp_path)
    maps = [batch / "platemap" / f"{name}.txt" for name in ("m1", "m2")]
    barcodes = tmp_path / "codes.csv"
    (batch / "barcode_platemap.csv").rename(barcodes)
    screen = ingested(tmp_path, "--platemap", *maps, "--barcode-platemap", barcodes)
    assert screen.table["Metadata_Plate_Map_Name"].nunique() == 2
    assert set(screen.provenance["joined"]) == {*map(str, maps), str(barcodes)}


def test_one_map_is_that_of_every_plate(tmp_path: Path) -> None:
    profiles(tmp_path)
    one = a_map("m").drop(columns="plate_map_name").rename(columns={"well_position": "Well"})
    one["Well"] = one["Well"].str.replace(
        r"(?<=[A-Z])0", "", regex=True
    )  # A1, as CellProfiler may write
    one.to_csv(tmp_path / "map.csv", index=False)
    table = ingested(tmp_path, "--platemap", tmp_path / "map.csv").table
    assert table["Metadata_broad_sample"].tolist() == [f"m-{n % 3}" for n in range(6)] * 2
    assert table["Metadata_Well"].tolist() == wells_of(96)[:6] * 2


def test_a_map_may_name_its_plates(tmp_path: Path) -> None:
    profiles(tmp_path)
    both = pd.concat([a_map(plate, Plate=plate) for plate in ("102", "101")])
    both.drop(columns="plate_map_name").to_csv(tmp_path / "map.csv", index=False)
    table = ingested(tmp_path, "--platemap", tmp_path / "map.csv").table
    expected = [f"{plate}-{n % 3}" for plate in ("101", "102") for n in range(6)]
    assert table["Metadata_broad_sample"].tolist() == expected


def test_maps_of_the_wrong_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles(tmp_path)
    whole, file = a_map("m"), tmp_path / "map.csv"
    twice = whole.assign(well_position=["A01", *whole["well_position"][:-1]])
    off = whole.assign(well_position=["A13", *whole["well_position"][1:]])
    cases = {
        "map m: 95 wells; expected 96, 384 or 1,536": whole[1:],
        "row 0 (from 0): well 'A13' is not on a plate of 96 wells (8 × 12)": off,
        "well 'A01' has two rows": twice,
        "no column of the well (looked for well_position": whole.drop(columns="well_position"),
    }
    for expected, table in cases.items():
        table.to_csv(file, index=False)
        said = refused(tmp_path, capsys, "--platemap", file)
        assert f"{file}: " in said
        assert expected in said


def test_wells_and_plates_without_a_map_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = broads_folder(tmp_path)
    profiles(tmp_path, ("101", "103"))
    said = refused(tmp_path, capsys, "--platemap", batch)
    assert "'Metadata_Plate' '103' has no row in" in said
    table = pd.read_csv(profiles(tmp_path), dtype=str)
    table.loc[3, "Metadata_Well"] = "P24"
    table.to_csv(tmp_path / "profiles.csv", index=False)
    said = refused(tmp_path, capsys, "--platemap", batch)
    assert "'m1/P24' has no row in" in said
    assert "lose 1 of 12 rows" in said
    (batch / "barcode_platemap.csv").unlink()
    said = refused(tmp_path, capsys, "--platemap", batch)
    assert "2 plate maps, and no table of the plates" in said
    said = refused(tmp_path, capsys, "--barcode-platemap", tmp_path / "codes.csv")
    assert "--barcode-platemap needs the maps that it names; add --platemap" in said
