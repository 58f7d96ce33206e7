"""GRID and LINCS-SC from an index table; the trees here are written by the tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound.config import DataOptions
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.data.sources import discover, grid, lincs_sc
from deconfound.errors import UserError

DISEASES = {"N1": "control", "N2": "control", "A1": "MELAS", "B1": "SURF1"}


def save(file: Path, value: int, channels: int) -> None:
    """A stack of flat planes, so that a row and a channel can be told by their pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    planes = np.arange(channels, dtype=np.uint16)[:, None, None] * 1000 + value
    tifffile.imwrite(
        file, np.broadcast_to(planes, (channels, 16, 16)).copy(), photometric="minisblack"
    )


def written(root: Path, rows: list[dict[str, str]], channels: int) -> Path:
    table = pd.DataFrame(rows)
    table["Metadata_Path"] = [f"images/{row}.tif" for row in range(len(rows))]
    for row, path in enumerate(table["Metadata_Path"]):
        save(root / path, row + 1, channels)
    table.to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture
def fibroblasts(tmp_path: Path) -> Path:
    """Two series of two plates of two sections, named alike; every patient in a well of each."""
    rows = [
        {"Metadata_Disease": disease, "Metadata_Patient": patient, "Metadata_Series": series,
         "Metadata_Plate": plate, "Metadata_Section": section,
         "Metadata_Well": f"{section}{number}", "Metadata_Site": str(site)}
        for series in ("1", "2")
        for plate in ("01", "02")
        for section in ("A", "B")
        for number, (patient, disease) in enumerate(DISEASES.items())
        for site in (1, 2)
    ]  # fmt: skip
    return written(tmp_path / "grid", rows, 3)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A series with both maps, and one with two plates of the first map."""
    plates = (("S1", "P1", "M1"), ("S1", "P2", "M2"), ("S2", "P1", "M1"), ("S2", "P2", "M1"))
    rows = [
        {"Metadata_Perturbation": compound, "Metadata_Series": series, "Metadata_Plate": plate,
         "Metadata_PlateMap": map_name, "Metadata_Well": well}
        for series, plate, map_name in plates
        for well, compound in (("A01", "DMSO"), ("A02", f"drug {map_name}"))
        for _ in range(4)
    ]  # fmt: skip
    return written(tmp_path / "lincs", rows, 5)


def changed(root: Path, row: int, **values: str) -> None:
    """The index with other values in one row."""
    table = pd.read_csv(root / "index.csv", dtype=str)
    for column, value in values.items():
        table.loc[row, column] = value
    table.to_csv(root / "index.csv", index=False)


def held_out(screen: Screen) -> dict[str, list[str]]:
    return {
        level: [group.fold for group in groups(screen.table, screen.roles, level)]
        for level in screen.roles.levels
    }


def test_both_are_sources() -> None:
    assert {"grid", "lincs_sc"} <= discover().keys()


def test_grid_has_its_levels_and_keeps_patients(fibroblasts: Path, tmp_path: Path) -> None:
    screen = grid.make(fibroblasts, tmp_path / "screen", grid.Config(size=16))
    assert screen.image_shape == (3, 16, 16)
    assert screen.dtype == np.uint16
    pixels = screen.read(np.arange(64))
    assert (pixels[:, :, 0, 0] == np.arange(1, 65)[:, None] + [0, 1000, 2000]).all()
    assert held_out(screen)["Metadata_Section"][:3] == [
        f"Metadata_Section={name}" for name in ("1/01/A", "1/01/B", "1/02/A")
    ]
    assert len(held_out(screen)["Metadata_Plate"]) == 4
    assert screen.table["Metadata_Plate"].iloc[0] == "01"
    assert set(screen.table["Metadata_Patient"]) == set(DISEASES)
    problem = pose(screen, DataOptions(fold="Metadata_Plate=1/01"))
    assert problem.label.names == ("MELAS", "SURF1", "control")
    assert len(problem.environment.names) == 6
    assert problem.fold.counts()["test"] == 16
    assert len(screen.provenance["index_sha256"]) == 64


def test_grid_takes_a_file_for_each_channel(fibroblasts: Path, tmp_path: Path) -> None:
    table = pd.read_csv(fibroblasts / "index.csv", dtype=str).iloc[:8].drop(columns="Metadata_Path")
    for channel in ("actin", "DNA"):
        table[f"FileName_{channel}"] = [f"planes/{row}-{channel}.tif" for row in range(8)]
        for path in table[f"FileName_{channel}"]:
            save(fibroblasts / path, 1 if channel == "DNA" else 2, 1)
    table.to_parquet(fibroblasts / "planes.parquet")
    config = grid.Config(size=16, index="planes.parquet", channels=("DNA", "actin"))
    screen = grid.make(fibroblasts, tmp_path / "screen", config)
    assert screen.channels == ("DNA", "actin")
    assert (screen.read([0, 7])[:, :, 0, 0] == [[1, 2], [1, 2]]).all()


@pytest.mark.parametrize(
    ("row", "values", "said"),
    [
        (2, {"Metadata_Disease": "MELAS"},
         r"patient 'N2' is of disease 'MELAS' in row 2 and of 'control' in row 3 \(from 0\)"),
        (9, {"Metadata_Well": "A0"},
         "series, plate, well '1/01/A0' is of section 'A' in row 0 and of 'B' in row 9"),
        (1, {"Metadata_Patient": "N2"},
         "well '1/01/A0' is of patient 'N1' in row 0 and of 'N2' in row 1"),
        (5, {"Metadata_Section": ""}, "'Metadata_Section' is empty in rows 5"),
        (5, {"Metadata_Path": "images/x.tif"}, r"index\.csv: row 5 .*no file .*images/x\.tif"),
    ],
)  # fmt: skip
def test_grid_names_what_is_wrong(
    fibroblasts: Path, tmp_path: Path, row: int, values: dict[str, str], said: str
) -> None:
    changed(fibroblasts, row, **values)
    with pytest.raises(UserError, match=said) as caught:
        grid.make(fibroblasts, tmp_path / "screen")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "screen").exists()


def test_lincs_has_plates_in_series_and_no_sections(crops: Path, tmp_path: Path) -> None:
    screen = lincs_sc.make(crops, tmp_path / "screen", lincs_sc.Config(size=8))
    assert screen.image_shape == (5, 8, 8)
    assert screen.channels == ("DNA", "ER", "RNA", "AGP", "Mito")
    assert (screen.read([3])[0, :, 0, 0] == 4 + np.arange(5) * 1000).all()
    assert held_out(screen) == {
        "Metadata_Series": ["Metadata_Series=S1", "Metadata_Series=S2"],
        "Metadata_Plate": [
            f"Metadata_Plate={name}" for name in ("S1/P1", "S1/P2", "S2/P1", "S2/P2")
        ],
    }
    problem = pose(screen, DataOptions(fold="Metadata_Plate=S2/P1"))
    assert problem.fold.counts()["test"] == 8
    assert set(screen.table["Metadata_PlateMap"]) == {"M1", "M2"}


def test_lincs_names_what_is_wrong(crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "screen"
    index = pd.read_csv(crops / "index.csv", dtype=str)
    changed(crops, 3, Metadata_PlateMap="M2")
    said = r"series, plate 'S1/P1' is of platemap 'M1' in row 0 and of 'M2' in row 3"
    with pytest.raises(UserError, match=said):
        lincs_sc.make(crops, out)
    index.to_csv(crops / "index.csv", index=False)
    changed(crops, 1, Metadata_Perturbation="drug M1")
    with pytest.raises(UserError, match=r"well 'S1/P1/A01' is of perturbation 'DMSO' in row 0"):
        lincs_sc.make(crops, out)
    swapped = pd.concat(
        [index[:8], index[16:24].assign(Metadata_Well=[*["A02"] * 4, *["A01"] * 4])]
    )
    swapped.to_csv(crops / "index.csv", index=False)
    with pytest.raises(
        UserError, match=r"platemap, well 'M1/A02' is of perturbation 'drug M1' in row 4"
    ):
        lincs_sc.make(crops, out)
    index.drop(columns="Metadata_PlateMap").to_csv(crops / "index.csv", index=False)
    with pytest.raises(UserError, match=r"index\.csv: there is no column 'Metadata_PlateMap'"):
        lincs_sc.make(crops, out)
    index.to_csv(crops / "index.csv", index=False)
    for row in range(len(index)):
        save(crops / f"images/{row}.tif", row, 3)
    with pytest.raises(UserError, match=r"row 0 .*3 channels, but --channels names 5"):
        lincs_sc.make(crops, out)
