"""Camelyon17-WILDS: tumour in patches of lymph nodes from five hospitals."""

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from deconfound.config import Options
from deconfound.data.ingest.paths import FOLDER_PATH
from deconfound.data.ingest.writing import screen_of_files
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles, read_table, require_columns
from deconfound.errors import UserError

SUMMARY = "Camelyon17-WILDS: 455,954 patches of lymph nodes from 5 hospitals, tumour or not"
PAPER = "Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, 2021"
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
VAL_HOSPITAL, TEST_HOSPITAL = "1", "2"


class Config(Options):
    """Options of Camelyon17."""

    size: int = Field(96, ge=1)
    """Resize to SIZE × SIZE pixels; the patches have 96, Makino et al. use 32."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the release in `root` (metadata.csv and patches/) at `out` and open the screen.

    Images (N, 3, size, size) uint8, 0-255. Columns: `Metadata_Tumor` ("0", "1"),
    `Metadata_Environment` (the training hospitals 0, 3, 4 re-indexed to 0, 1, 2; missing for the
    others, as in Makino et al.), `Metadata_Hospital`, `Metadata_Slide`, `Metadata_Patient`,
    `Metadata_Node`, `Metadata_Path` and `Metadata_Split`: train, val (the release's id_val), test
    (hospital 2) and empty for hospital 1, the release's out-of-distribution validation, which no
    selection of ours reads. Raises UserError for a missing column or patch.
    """
    config = config or Config()
    root = Path(root)
    where = root / "metadata.csv"
    given = read_table(where).astype("string")
    require_columns(given, COLUMNS, str(where))
    hospital = given["center"]
    held_out = hospital.isin([VAL_HOSPITAL, TEST_HOSPITAL])
    split = given["split"].map({"0": "train", "1": "val"})
    if (unknown := split.isna() & ~held_out).any():
        row = int(np.flatnonzero(unknown)[0])
        raise UserError(
            f"{where}: row {row} (from 0): split {given['split'][row]!r}; expected 0 (train) or 1 "
            "(id_val)"
        )
    split[hospital == VAL_HOSPITAL] = None
    split[hospital == TEST_HOSPITAL] = "test"
    trained = sorted(hospital[~held_out].unique())
    patient = given["patient"].str.zfill(3)
    folder = "patient_" + patient + "_node_" + given["node"]
    place = "_x_" + given["x_coord"] + "_y_" + given["y_coord"]
    table = pd.DataFrame(
        {
            FOLDER_PATH: "patches/" + folder + "/patch_" + folder + place + ".png",
            "Metadata_Tumor": given["tumor"],
            "Metadata_Environment": hospital.map({h: str(i) for i, h in enumerate(trained)}),
            "Metadata_Hospital": hospital,
            "Metadata_Slide": given["slide"],
            "Metadata_Patient": patient,
            "Metadata_Node": given["node"],
            "Metadata_Split": split,
        }
    )
    roles = Roles(
        label="Metadata_Tumor",
        environment=("Metadata_Environment",),
        levels=("Metadata_Hospital", "Metadata_Slide"),
        split="Metadata_Split",
    )
    made = {
        "made_by": "source camelyon17",
        "paper": PAPER,
        "options": config.model_dump(mode="json"),
        "environments": {h: str(i) for i, h in enumerate(trained)},
    }
    return screen_of_files(table, root, out, roles, made, size=config.size, rgb=True)
