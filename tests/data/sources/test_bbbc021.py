"""BBBC021 from its three tables; those here are written by the tests, in the published layout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.controls import control_rows
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import open_screen
from deconfound.data.sources import bbbc021, discover
from deconfound.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "bbbc021"
PLATES = ("Week1_1", "Week1_2", "Week10_1", "Week10_2")
WELLS = {"B02": ("DMSO", "0"), "B03": ("taxol", "0.3"), "B04": ("taxol", "3"), "B05": ("ALLN", "3")}
MECHANISMS = (("taxol", "3.000000", "Stabilizers"), ("taxol", "0.300000", "Stabilizers"),
              ("ALLN", "3.000000", "Degradation"), ("DMSO", "0.000000", "DMSO"),
              ("unused", "1.0", "Other"))  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four plates of two weeks with four wells; the images list two sites a well, out of order."""
    folder = tmp_path / "BBBC021"
    folder.mkdir()
    wells = [(plate, well) for plate in PLATES for well in WELLS]
    profiles = pd.DataFrame(wells, columns=["Image_Metadata_Plate", "Image_Metadata_Well"])
    profiles["Cells_AreaShape_Area"] = np.arange(16) + 0.5
    profiles["Cells_AreaShape_Center_X"] = 1.0 + np.arange(16)
    profiles["Nuclei_Texture_1"] = 100.0 - np.arange(16)
    profiles["Nuclei_Constant"] = 1.0
    profiles.to_csv(folder / f"{bbbc021.PROFILES}.gz", index=False)
    images = [(plate, well, *WELLS[well]) for plate, well in wells[::-1] for _ in range(2)]
    images.append(("Week1_1", "G11", "not profiled", "1"))
    pd.DataFrame(images, columns=list(bbbc021.OF_IMAGES)).to_csv(
        folder / bbbc021.IMAGES, index=False
    )
    pd.DataFrame(MECHANISMS, columns=list(bbbc021.OF_MECHANISMS)).to_csv(
        folder / bbbc021.MECHANISMS, index=False
    )
    return folder


def test_wells_get_their_treatment_mechanism_and_week(root: Path, tmp_path: Path) -> None:
    assert "bbbc021" in discover()
    screen = bbbc021.make(root, tmp_path / "screen")
    assert screen.channels == ("Cells_AreaShape_Area", "Nuclei_Texture_1")
    expected = np.stack([np.arange(16) + 0.5, 100 - np.arange(16)], axis=1)
    assert np.array_equal(screen.read(np.arange(16)), expected.astype(np.float32))
    table = screen.table
    assert table["Metadata_Mechanism"].tolist() == [
        "DMSO", "Stabilizers", "Stabilizers", "Degradation"
    ] * 4  # fmt: skip
    assert table["Metadata_Concentration"].tolist() == [0.0, 0.3, 3.0, 3.0] * 4
    assert table["Metadata_Compound"].tolist() == ["DMSO", "taxol", "taxol", "ALLN"] * 4
    assert table["Metadata_Week"].tolist() == ["Week1"] * 8 + ["Week10"] * 8
    controls = control_rows(table, screen.roles.label, None, "screen")
    assert np.flatnonzero(controls).tolist() == [0, 4, 8, 12]
    weeks, plates = (groups(table, screen.roles, level) for level in screen.roles.levels)
    assert [group.fold for group in weeks] == ["Metadata_Week=Week1", "Metadata_Week=Week10"]
    assert plates[0].fold == "Metadata_Plate=Week1/Week1_1"
    assert pose(screen, DataOptions(fold=weeks[0].fold)).fold.counts()["test"] == 8
    assert len(screen.provenance["sha256"]) == 3


@pytest.mark.parametrize(
    ("file", "row", "column", "value", "said"),
    [
        (bbbc021.IMAGES, 0, "Image_Metadata_Compound", "taxol",
         "plate, well 'Week10_2/B05' is of compound 'taxol' in row 0 and of 'ALLN' in row 1"),
        (bbbc021.IMAGES, 0, "Image_Metadata_Concentration", "much",
         r"row 0 \(from 0\): concentration 'much' is no number"),
        (bbbc021.MECHANISMS, 2, "concentration", "9",
         r"no row of compound ALLN, concentration 3\.0, which row 3 .* 4 such rows in all"),
        (bbbc021.MECHANISMS, 4, "compound", "DMSO", None),
        (bbbc021.MECHANISMS, 4, ["compound", "concentration"], ["DMSO", "0"],
         "compound, concentration 'DMSO/0' is of mechanism 'DMSO' in row 3 and of 'Other'"),
        (f"{bbbc021.PROFILES}.gz", 1, "Image_Metadata_Well", "B02",
         "row 1 .*: well B02 of plate Week1_1 has a profile already"),
        (f"{bbbc021.PROFILES}.gz", 1, "Image_Metadata_Well", "H12",
         r"BBBC021_v1_image\.csv: has no row of plate Week1_1, well H12"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    root: Path, tmp_path: Path, file: str, row: int, column: str, value: str, said: str | None
) -> None:
    table = pd.read_csv(root / file, dtype=str)
    table.loc[row, column] = value
    table.to_csv(root / file, index=False)
    if said is None:
        bbbc021.make(root, tmp_path / "screen")
        return
    with pytest.raises(UserError, match=said) as caught:
        bbbc021.make(root, tmp_path / "screen")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "screen").exists()


def test_a_plate_without_a_week_is_named(root: Path, tmp_path: Path) -> None:
    for file in (bbbc021.IMAGES, f"{bbbc021.PROFILES}.gz"):
        table = pd.read_csv(root / file, dtype=str)
        table.replace("Week10_1", "Plate10").to_csv(root / file, index=False)
    with pytest.raises(UserError, match=r"row 8 .*: plate 'Plate10' names no week"):
        bbbc021.make(root, tmp_path / "screen")


@pytest.mark.parametrize("file", [bbbc021.IMAGES, bbbc021.MECHANISMS, f"{bbbc021.PROFILES}.gz"])
def test_a_missing_table_is_named(root: Path, tmp_path: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(UserError, match=rf"{file.removesuffix('.gz')}: no such table, nor"):
        bbbc021.make(root, tmp_path / "screen")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no public data in {REAL}")
def test_the_published_tables(tmp_path: Path) -> None:
    """Ten weeks, each with a mechanism that another week has under another compound."""
    table = bbbc021.make(REAL, tmp_path / "screen").table
    screen = open_screen(tmp_path / "screen")
    assert (len(screen), table["Metadata_Plate"].nunique()) == (632, 55)
    assert table["Metadata_Mechanism"].nunique() == 13
    assert (table["Metadata_Control_Type"] == "negcon").sum() == 330
    treated = table[table["Metadata_Control_Type"] == "treatment"]
    assert treated["Metadata_Compound"].nunique() == 38
    assert (treated.groupby("Metadata_Compound")["Metadata_Week"].nunique() == 1).all()
    weeks = [group for group in groups(table, screen.roles, "Metadata_Week") if not group.refused]
    assert len(weeks) == 10
