"""Camelyon17 and RxRx1 as WILDS releases them; the trees here are written by the tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.sources import camelyon17, rxrx1
from deconfound.errors import UserError


def save(file: Path, value: int, side: int) -> None:
    """A flat picture, so that a row can be told by its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(file)


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Eight patches of each hospital, two slides each; patient 4 is written 004."""
    root = tmp_path / "camelyon17_v1.0"
    rows = []
    for center in range(5):
        for number in range(8):
            row = {
                "patient": f"{center * 20 + 4:03d}", "node": number % 2, "x_coord": 32 * number,
                "y_coord": 64, "tumor": number // 2 % 2, "slide": center * 10 + number % 2,
                "center": center, "split": int(number > 5),
            }  # fmt: skip
            rows.append(row)
            folder = f"patient_{row['patient']}_node_{row['node']}"
            name = f"patch_{folder}_x_{row['x_coord']}_y_{row['y_coord']}.png"
            save(root / "patches" / folder / name, len(rows), 96)
    pd.DataFrame(rows).to_csv(root / "metadata.csv")
    return root


def test_camelyon17_has_the_official_split_and_no_environment_in_the_test(
    patches: Path, tmp_path: Path
) -> None:
    screen = camelyon17.make(patches, tmp_path / "screen", camelyon17.Config(size=32))
    assert screen.image_shape == (3, 32, 32)
    assert (screen.read(range(40))[:, 0, 0, 0] == np.arange(1, 41)).all()
    table = screen.table
    by_hospital = table.groupby("Metadata_Hospital")["Metadata_Environment"].agg(set).to_dict()
    assert {key: by_hospital[key] for key in "034"} == {"0": {"0"}, "3": {"1"}, "4": {"2"}}
    assert (
        table.loc[table["Metadata_Hospital"].isin(["1", "2"]), "Metadata_Environment"].isna().all()
    )
    problem = pose(screen, DataOptions(fold="given"))
    counts = problem.fold.counts()
    assert {part: count for part, count in counts.items() if count} == {
        "train": 18, "val": 6, "test": 8, "unused": 8,
    }  # fmt: skip
    test = problem.fold.rows("test")
    assert set(table["Metadata_Hospital"].iloc[test]) == {"2"}
    assert (problem.environment.codes[test] == -1).all()
    assert problem.environment.names == ("0", "1", "2")
    assert table["Metadata_Patient"].iloc[0] == "004"


def test_camelyon17_names_what_is_wrong(patches: Path, tmp_path: Path) -> None:
    file = patches / "metadata.csv"
    table = pd.read_csv(file, dtype=str)
    table.drop(columns="center").to_csv(file, index=False)
    with pytest.raises(UserError, match=r"metadata\.csv.*'center'"):
        camelyon17.make(patches, tmp_path / "screen")
    table.assign(split=["7", *table["split"][1:]]).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"row 0 .*split '7'"):
        camelyon17.make(patches, tmp_path / "screen")
    table.assign(x_coord=["9", *table["x_coord"][1:]]).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"row 0 .*_x_9_y_64"):
        camelyon17.make(patches, tmp_path / "screen")


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Two training experiments, one to validate and one to test, of one cell type."""
    root = tmp_path / "rxrx1_v1.0"
    rows = []
    for experiment, dataset in zip("1234", ("train", "train", "val", "test"), strict=True):
        for well in range(10):
            for site in (1, 2):
                row = {
                    "site_id": "", "well_id": "", "cell_type": "HEPG2", "dataset": dataset,
                    "experiment": f"HEPG2-0{experiment}", "plate": 1, "well": f"B{well + 1:02d}",
                    "site": site, "well_type": "treatment", "sirna": "s", "sirna_id": well % 2,
                }  # fmt: skip
                rows.append(row)
                file = f"images/{row['experiment']}/Plate1/{row['well']}_s{site}.png"
                save(root / file, len(rows), 16)
    pd.DataFrame(rows).to_csv(root / "metadata.csv", index=False)
    return root


def test_rxrx1_has_the_official_split_and_draws_its_validation_within_each_label(
    fields: Path, tmp_path: Path
) -> None:
    screen = rxrx1.make(fields, tmp_path / "screen", rxrx1.Config(size=16, val_fraction=0.2))
    assert (screen.read(range(80))[:, 0, 0, 0] == np.arange(1, 81)).all()
    table = screen.table
    problem = pose(screen, DataOptions(fold="given"))
    counts = problem.fold.counts()
    assert {part: count for part, count in counts.items() if count} == {
        "train": 16, "val": 4, "id_test": 20, "test": 20, "unused": 20,
    }  # fmt: skip
    seen = problem.fold.rows("val")
    assert table["Metadata_sirna_id"].iloc[seen].value_counts().to_dict() == {"0": 2, "1": 2}
    for part, experiments, sites in (
        ("train", {"HEPG2-01", "HEPG2-02"}, {"1"}),
        ("id_test", {"HEPG2-01", "HEPG2-02"}, {"2"}),
        ("test", {"HEPG2-04"}, {"1", "2"}),
    ):
        rows = table.iloc[problem.fold.rows(part)]  # type: ignore[arg-type]
        assert set(rows["Metadata_Batch"]) == experiments
        assert set(rows["Metadata_Site"]) == sites
    assert problem.environment.names == ("HEPG2-01", "HEPG2-02")


def test_rxrx1_names_an_unknown_dataset(fields: Path, tmp_path: Path) -> None:
    file = fields / "metadata.csv"
    table = pd.read_csv(file, dtype=str)
    table.assign(dataset=["holdout", *table["dataset"][1:]]).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"row 0 .*dataset 'holdout'"):
        rxrx1.make(fields, tmp_path / "screen")
