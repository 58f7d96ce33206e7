"""RxRx1-WILDS: cells under 1,139 siRNAs in 51 experiments."""

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
from deconfound.runtime.seeds import numpy_stream

SUMMARY = "RxRx1-WILDS: 125,510 fields of cells under 1,139 siRNAs in 51 experiments"
PAPER = "Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, 2021"
COLUMNS = ("cell_type", "dataset", "experiment", "plate", "well", "site", "sirna_id")


class Config(Options):
    """Options of RxRx1."""

    size: int = Field(256, ge=1)
    """Resize to SIZE × SIZE pixels; the release has 256."""
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training images of each siRNA that selects the checkpoint."""
    seed: int = 0
    """Seed of that choice."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the release in `root` (metadata.csv and images/) at `out` and open the screen.

    Images (N, 3, size, size) uint8, 0-255. Columns: `Metadata_sirna_id` (the label),
    `Metadata_Batch` (the experiment and the environment), `Metadata_Plate`, `Metadata_Well`,
    `Metadata_Site`, `Metadata_CellType`, `Metadata_Path` and `Metadata_Split`: train and val (site
    1 of the training experiments, drawn within each siRNA: the release has no in-distribution
    validation), id_test (site 2 of them), test (the test experiments) and empty for the release's
    validation experiments. Raises UserError for a missing column, an unknown dataset or a missing
    image.
    """
    config = config or Config()
    root = Path(root)
    where = root / "metadata.csv"
    given = read_table(where).astype("string")
    require_columns(given, COLUMNS, str(where))
    if (unknown := ~given["dataset"].isin(["train", "val", "test"])).any():
        row = int(np.flatnonzero(unknown)[0])
        raise UserError(
            f"{where}: row {row} (from 0): dataset {given['dataset'][row]!r}; expected train, val "
            "or test"
        )
    table = pd.DataFrame(
        {
            FOLDER_PATH: "images/" + given["experiment"] + "/Plate" + given["plate"]
            + "/" + given["well"] + "_s" + given["site"] + ".png",
            "Metadata_sirna_id": given["sirna_id"],
            "Metadata_Batch": given["experiment"],
            "Metadata_Plate": given["plate"],
            "Metadata_Well": given["well"],
            "Metadata_Site": given["site"],
            "Metadata_CellType": given["cell_type"],
            "Metadata_Split": _split(given, config),
        }
    )  # fmt: skip
    roles = Roles(
        label="Metadata_sirna_id",
        environment=("Metadata_Batch",),
        levels=("Metadata_Batch", "Metadata_Plate"),
        well="Metadata_Well",
        split="Metadata_Split",
    )
    made = {"made_by": "source rxrx1", "paper": PAPER, "options": config.model_dump(mode="json")}
    return screen_of_files(table, root, out, roles, made, size=config.size, rgb=True)


def _split(given: pd.DataFrame, config: Config) -> list[str | None]:
    dataset, site = given["dataset"].to_numpy(), given["site"].to_numpy()
    split = dataset.astype(object)
    split[dataset == "val"] = None
    split[(dataset == "train") & (site == "2")] = "id_test"
    first = np.flatnonzero(split == "train")
    stream = numpy_stream(config.seed, "rxrx1", "split")
    sirna = given["sirna_id"].to_numpy()[first]
    for name in sorted(set(sirna)):
        rows = stream.permutation(first[sirna == name])
        split[rows[: round(config.val_fraction * len(rows))]] = "val"
    return list(split)
