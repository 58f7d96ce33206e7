"""What ingest says of a table whose roles lack: all at once, with the command that mends it."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound import cli
from deconfound.data.ingest.arrays import ingest_array
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.ingest.roles import resolve_roles, roles_said
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

COLUMNS = (
    "it has Metadata_Phenotype, Metadata_CellType, Metadata_Date, Metadata_Lab, gene, compound"
)
ROLES = "--label Metadata_Phenotype --environment Metadata_Date --levels Metadata_Lab Metadata_Date"


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """24 rows and their files in the folder "my images", of two sizes."""
    (tmp_path / "my images").mkdir()
    for row in range(24):
        Image.new("L", (8, 6 + 2 * (row % 2)), row).save(tmp_path / "my images" / f"{row}.png")
    return pd.DataFrame(
        {
            "Metadata_Phenotype": [*"abc"] * 8,
            "Metadata_CellType": [*"ab"] * 12,
            "Metadata_Date": [f"d{row // 6}" for row in range(24)],
            "Metadata_Lab": [f"l{row // 12}" for row in range(24)],
            "gene": [*"gh"] * 12,
            "compound": "one",
            "file of cell": [f"{row}.png" for row in range(24)],
        }
    )


def followed(said: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command that a message ends with prints, without its bars."""
    words = shlex.split(said.partition("; try: deconfound ")[2])
    cli.main([*words, "--quiet"])
    return capsys.readouterr().out


def test_all_that_lacks_for_images_is_said_at_once(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images, out = tmp_path / "my table.csv", tmp_path / "my images", tmp_path / "s"
    table.to_csv(file, index=False)
    with pytest.raises(UserError) as found:
        ingest(file, images, out, quiet=True)
    said = str(found.value)
    assert "\n" not in said
    for part in ("no label column", "no environment column", "image paths", COLUMNS):
        assert said.count(part) == 1
    assert "--label could also be Metadata_CellType, gene;" in said
    assert "--environment could also be Metadata_Lab;" in said
    start = f"; try: deconfound ingest '{file}' --images-root '{images}' --out {out}"
    assert said.endswith(f"{start} --path-column 'file of cell' {ROLES}")
    config = IngestConfig(path_column="file of cell", channels=("DNA",))
    with pytest.raises(UserError, match=r"differ in size \(H × W\), such as 6 × 8 and 8 × 8") as f:
        ingest(file, images, out, config=config, quiet=True)
    said = str(f.value)
    assert said.endswith(f"--path-column 'file of cell' {ROLES} --channels DNA --size 6")
    assert not out.exists()
    printed = followed(said, capsys)
    assert "24 images in" in printed
    roles = "label Metadata_Phenotype (3); environment Metadata_Date (4); levels Metadata_Lab > "
    assert f"\n{roles}Metadata_Date; well none; controls none\n" in printed


def test_a_file_that_is_missing_is_said_with_the_roles(table: pd.DataFrame, tmp_path: Path) -> None:
    table.drop(columns="compound").to_csv(tmp_path / "t.csv", index=False)
    config = IngestConfig(path_column="file of cell")
    with pytest.raises(UserError, match=r"no label column .* files are missing") as found:
        ingest(tmp_path / "t.csv", tmp_path, tmp_path / "s", config=config, quiet=True)
    assert str(found.value).endswith(f"--path-column 'file of cell' {ROLES}")


def test_a_column_that_is_not_there_is_mended_in_the_command(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    table.to_csv(tmp_path / "t.csv", index=False)
    named = ("Metadata_Date", "Metadata_Labs")
    config = IngestConfig(label="phenotypes", environment=named, size=8, path_column="file")
    with pytest.raises(UserError) as found:
        ingest(tmp_path / "t.csv", tmp_path / "my images", tmp_path / "s", config=config)
    said = str(found.value)
    assert "'phenotypes'; did you mean 'Metadata_Phenotype'? there is no column" in said
    assert "'Metadata_Labs'; did you mean 'Metadata_Lab'? there is no column 'file'; did" in said
    assert said.count(COLUMNS) == 1
    assert said.endswith(
        "--path-column 'file of cell' --label Metadata_Phenotype --environment Metadata_Date "
        "Metadata_Lab --size 8"
    )


def test_profiles_without_known_columns(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "t.csv", tmp_path / "s"
    values = np.random.default_rng(0).normal(size=(24, 3))
    table[["emb_0", "emb_1", "emb_2"]] = values
    table.to_csv(file, index=False)
    with pytest.raises(UserError, match=r"no label .* no environment .* no feature col") as found:
        ingest_profiles(file, out, quiet=True)
    said = str(found.value)
    start = f"; try: deconfound ingest {file} --profiles --out {out} --feature-columns 'emb_*'"
    assert said.endswith(f"{start} {ROLES}")
    assert COLUMNS in said
    assert "24 profiles in" in followed(said, capsys)
    roles = IngestConfig(label="gene", environment=("Metadata_Lab",))
    with pytest.raises(UserError, match="no feature columns") as found:
        ingest_profiles(file, tmp_path / "t", config=roles, quiet=True)
    assert str(found.value).endswith("'emb_*' --label gene --environment Metadata_Lab")


def test_arrays_without_known_columns(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((24, 4, 4), np.uint8), y=np.zeros(3))
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match=r"no label column .* no environment column") as found:
        ingest_array(tmp_path / "t.csv", tmp_path / "a.npz", tmp_path / "s", key="x", quiet=True)
    said = str(found.value)
    assert said.endswith(f"--array-key x {ROLES}")
    assert "24 images in" in followed(said, capsys)
    assert roles_said(open_screen(tmp_path / "s")).startswith("label Metadata_Phenotype (3); ")


def test_what_no_column_fits_is_left_to_fill_in() -> None:
    table = pd.DataFrame({"a": [1, 2], "b": [1, 2]})
    with pytest.raises(UserError) as found:
        resolve_roles(table, IngestConfig(), "t.csv")
    assert str(found.value).endswith(
        "; it has a, b; try: deconfound ingest --label COLUMN --environment COLUMN --levels COLUMN"
    )


def test_one_label_is_refused(table: pd.DataFrame) -> None:
    config = IngestConfig(label="compound", environment=("Metadata_Date",))
    with pytest.raises(UserError) as found:
        resolve_roles(table, config, "t.csv")
    assert str(found.value) == (
        "t.csv: label column 'compound' has one value, 'one', in all 24 rows, so there is nothing "
        "to learn; name another with --label (such as Metadata_Phenotype, Metadata_CellType, "
        "gene), or add rows of other labels"
    )


def test_the_roles_taken_are_said(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "Metadata_Gene": ["A", "nontargeting"] * 4,
            "Metadata_Batch": ["b", "b", "c", "c"] * 2,
            "Metadata_Plate": ["p", "q", "p", "q"] * 2,
            "Metadata_Well": [f"A{row % 4}" for row in range(8)],
            "Metadata_Split": "train",
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "a.npy", np.zeros((8, 4, 4), np.uint8))
    screen = ingest_array(tmp_path / "t.csv", tmp_path / "a.npy", tmp_path / "s", quiet=True)
    assert roles_said(screen) == (
        "label Metadata_Gene (2); environment Metadata_Batch / Metadata_Plate (4); levels "
        "Metadata_Batch > Metadata_Plate; well Metadata_Well (4); split Metadata_Split; controls "
        "4 rows"
    )


def test_compare_of_a_table_proposes_the_ingest(table: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "a table.csv"
    table.to_csv(file, index=False, sep=";")
    with pytest.raises(UserError) as found:
        compare(file, tmp_path / "o")
    start = f"{file}: a table of images; add --images-root FOLDER, from which its paths start, "
    made = f"or make a screen first: deconfound ingest '{file}' --images-root FOLDER --out SCREEN"
    assert str(found.value) == f"{start}{made} {ROLES}"
    table.assign(Cells_A=0.5).to_csv(file, index=False)
    with pytest.raises(UserError, match=f" --profiles --out SCREEN {ROLES}"):
        compare(file, tmp_path / "o", CompareOptions(view="levels"))
    assert not (tmp_path / "o").exists()


def test_class_folders_of_one_label_ask_for_others(tmp_path: Path) -> None:
    for row in range(2):
        (tmp_path / "images" / f"e{row}" / "label").mkdir(parents=True)
        Image.new("L", (8, 8), row).save(tmp_path / "images" / f"e{row}" / "label" / "0.png")
    with pytest.raises(UserError, match="nothing to learn; add folders of other labels"):
        ingest(None, tmp_path / "images", tmp_path / "s", quiet=True)
