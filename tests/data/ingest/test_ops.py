"""Tables of optical pooled screens: sgRNA, gene, plate, well and a crop a cell."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.ingest.arrays import ingest_array
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.readers.resizing import resampled
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import joined
from deconfound.errors import UserError

REAL = Path(__file__).parents[4] / "shared/data/periscope/derived_crops_5ch_100px.npz"
WELLS = ("Metadata_Plate", "Metadata_Well")
CONFIG = IngestConfig(path_column="Crop", environment=WELLS, levels=WELLS, size=16)


def write_pool(
    folder: Path, pixels: npt.NDArray[Any], genes: list[str], guides: list[str]
) -> pd.DataFrame:
    """One .npy a cell, and a table in which plates and wells are dealt."""
    rows = np.arange(len(pixels))
    for row in rows:
        np.save(folder / f"{row}.npy", pixels[row])
    table = pd.DataFrame(
        {
            "Crop": [f"{row}.npy" for row in rows],
            "Metadata_sgRNA": guides,
            "Metadata_Gene": genes,
            "Metadata_Plate": [f"P{row % 2}" for row in rows],
            "Metadata_Well": [f"A{row // 2 % 3}" for row in rows],
            "Metadata_CellID": [str(row) for row in rows],
        }
    )
    table.to_csv(folder / "cells.csv", index=False)
    return table


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 5_000, (24, 4, 20, 20), dtype=np.uint16)
    genes = ["nontargeting" if row % 4 == 3 else f"G{row % 4}" for row in range(24)]
    write_pool(folder, pixels, genes, [f"{gene}-{row % 2}" for row, gene in enumerate(genes)])
    return folder


def ingested(pool: Path, out: Path) -> Screen:
    return ingest(pool / "cells.csv", pool, out, config=CONFIG, quiet=True)


def test_a_pooled_screen_has_genes_as_labels_and_wells_as_environments(
    pool: Path, tmp_path: Path
) -> None:
    screen = ingested(pool, tmp_path / "screen")
    assert screen.roles.label == "Metadata_Gene"
    assert screen.roles.environment == screen.roles.levels == WELLS
    assert screen.image_shape == (4, 16, 16)
    assert joined(screen.table, WELLS).nunique() == 6
    expected = resampled(np.load(pool / "7.npy"), (16, 16))
    np.testing.assert_array_equal(screen.read([7])[0], expected)
    assert screen.coded(["Metadata_Gene"]).names == ("G0", "G1", "G2", "nontargeting")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Metadata_Gene", "", r"'Metadata_Gene' is empty in rows 5 \(from 0\)"),
        ("Metadata_Well", "", r"'Metadata_Well' is empty in rows 5 \(from 0\)"),
    ],
)
def test_a_guide_without_gene_or_well_is_refused(
    pool: Path, tmp_path: Path, column: str, value: str, message: str
) -> None:
    table = pd.read_csv(pool / "cells.csv", dtype=str)
    table.loc[5, column] = value
    table.to_csv(pool / "cells.csv", index=False)
    with pytest.raises(UserError, match=message):
        ingested(pool, tmp_path / "screen")


def test_a_repeated_cell_is_refused(pool: Path, tmp_path: Path) -> None:
    table = pd.read_csv(pool / "cells.csv", dtype=str)
    table.loc[14] = table.loc[2].to_numpy()
    table.to_csv(pool / "cells.csv", index=False)
    with pytest.raises(UserError, match=r"rows 2 and 14 \(from 0\) have the same") as caught:
        ingested(pool, tmp_path / "screen")
    assert "\n" not in str(caught.value)


@pytest.fixture
def real() -> dict[str, npt.NDArray[Any]]:
    if not REAL.is_file():
        pytest.skip(f"the cells of PERISCOPE are not at {REAL}")
    with np.load(REAL, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_the_real_cells_of_periscope_become_a_screen_by_their_crops(
    real: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    table = write_pool(folder, real["X"], real["gene"].tolist(), real["sgRNA"].tolist())
    config = CONFIG.model_copy(update={"size": 64, "channels": tuple(real["channels"].tolist())})
    screen = ingest(folder / "cells.csv", folder, tmp_path / "screen", config=config, quiet=True)
    assert (len(screen), screen.image_shape) == (185, (5, 64, 64))
    assert screen.channels == ("DNA", "Mito", "Phalloidin", "WGA", "ER")
    for row in (0, 99, 184):
        np.testing.assert_array_equal(screen.read([row])[0], resampled(real["X"][row], (64, 64)))
    assert screen.table["Metadata_sgRNA"].tolist() == table["Metadata_sgRNA"].tolist()
    problem = pose(screen, DataOptions())
    assert len(problem.label.names) == 6
    assert len(problem.environment.names) == 6


def test_the_real_cells_of_periscope_become_a_screen_by_their_array(
    real: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    table = pd.DataFrame({"Metadata_Gene": real["gene"], "Metadata_sgRNA": real["sgRNA"]})
    table.to_csv(tmp_path / "cells.csv", index=False)
    config = IngestConfig(environment=("Metadata_sgRNA",))
    screen = ingest_array(
        tmp_path / "cells.csv", REAL, tmp_path / "screen", key="X", config=config, quiet=True
    )
    np.testing.assert_array_equal(screen.read(np.arange(185)), real["X"])
