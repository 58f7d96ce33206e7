"""Tables of cells joined to CellProfiler's table of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.tables.image_table import without_image_prefix
from deconfound.errors import UserError

CENTRES = ["Location_Center_X", "Location_Center_Y"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three fields (1, 20, 20), `Image.csv`, and `Nuclei.csv` of five cells in two of them."""
    pixels = np.random.default_rng(0).integers(1, 256, (3, 20, 20), dtype=np.uint8)
    for field in range(3):
        tifffile.imwrite(tmp_path / f"{field}.tif", pixels[field])
    images = {
        "ImageNumber": [3, 1, 2],
        "FileName_DNA": ["2.tif", "0.tif", "1.tif"],
        "PathName_DNA": ["."] * 3,
        "Image_Metadata_Plate": ["P2", "P0", "P1"],
        "Metadata_Gene": ["c", "a", "b"],
        "Count_Nuclei": ["0", "2", "3"],
    }
    pd.DataFrame(images).to_csv(tmp_path / "Image.csv", index=False)
    cells = pd.DataFrame({"ImageNumber": [1, 3, 1, 3, 3], "Cells_A": [1.5, 2, 3, 4, 5]})
    cells[CENTRES] = [[8, 8], [9, 9], [10, 10], [11, 8], [8, 11]]
    cells.to_csv(tmp_path / "Nuclei.csv", index=False)
    return tmp_path


def config(folder: Path, **options: Any) -> IngestConfig:
    return IngestConfig(image_table=folder / "Image.csv", **options)


def test_cells_get_the_files_and_metadata_of_their_image(folder: Path) -> None:
    table = folder / "Nuclei.csv"
    screen = ingest(table, folder, folder / "s", config=config(folder, crop=6), quiet=True)
    assert screen.table["Metadata_Plate"].tolist() == ["P0", "P2", "P0", "P2", "P2"]
    assert screen.table["Metadata_Gene"].tolist() == [*"acacc"]
    assert "Count_Nuclei" not in screen.table
    assert screen.channels == ("DNA",)
    fields = [tifffile.imread(folder / f"{field}.tif") for field in (0, 2)]
    np.testing.assert_array_equal(screen.read([0])[0, 0], fields[0][5:11, 5:11])
    np.testing.assert_array_equal(screen.read([1])[0, 0], fields[1][6:12, 6:12])
    assert len(screen.provenance["image_table_sha256"]) == 64


def test_a_named_column_is_taken_too_and_the_cells_own_stay(folder: Path) -> None:
    table = pd.read_csv(folder / "Nuclei.csv").assign(Metadata_Gene=[*"mnmnm"])
    table.to_parquet(folder / "Nuclei.parquet")
    named = config(folder, crop=6, environment=("Image_Metadata_Plate", "Count_Nuclei"))
    screen = ingest(folder / "Nuclei.parquet", folder, folder / "s", config=named, quiet=True)
    assert screen.table["Metadata_Gene"].tolist() == [*"mnmnm"]
    assert screen.roles.environment == ("Image_Metadata_Plate", "Count_Nuclei")


def test_profiles_get_the_metadata_of_their_image(folder: Path) -> None:
    screen = ingest_profiles(folder / "Nuclei.csv", folder / "s", config=config(folder), quiet=True)
    assert screen.channels == ("Cells_A",)
    assert screen.table["Metadata_Plate"].tolist() == ["P0", "P2", "P0", "P2", "P2"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Image.csv", "ImageNumber", "Number", r"Image.csv: there is no column 'ImageNumber'; did"),
        ("Nuclei.csv", "ImageNumber", "Number", r"Nuclei.csv: there is no column 'ImageNumber'"),
        ("Image.csv", "\n2,", "\n3,", r"Image.csv: rows 0 and 2 .* both have ImageNumber '3'"),
        ("Image.csv", "\n3,", "\n4,", r"row 1 .*ImageNumber '3' is not in .*Image.csv; 3 of 5"),
    ],
)
def test_what_does_not_join_is_one_line(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    changed = folder / file
    changed.write_text(changed.read_text().replace(old, new, 1))
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message) as error:
        ingest(
            folder / "Nuclei.csv", folder, folder / "s", config=config(folder, crop=6), quiet=True
        )
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before


def test_the_table_of_images_alone_needs_no_option_for_its_prefix(folder: Path) -> None:
    screen = ingest(folder / "Image.csv", folder, folder / "s", quiet=True)
    assert screen.roles.environment == ("Metadata_Plate",)
    with pytest.raises(UserError, match="--image-table needs a table of cells"):
        ingest(None, folder, folder / "t", config=config(folder), quiet=True)
    both = pd.DataFrame({"Image_Metadata_A": [1], "Metadata_A": [2], "Image_Metadata_B": [3]})
    assert list(without_image_prefix(both)) == ["Image_Metadata_A", "Metadata_A", "Metadata_B"]
    assert list(without_image_prefix(both, ["Image_Metadata_B"])) == list(both)
