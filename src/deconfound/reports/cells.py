"""All rows of the embeddings in a report: labels, predictions, environments, plates and wells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Floats, Mask
from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.groups import down_to_well
from deconfound.data.readers.blocks import no_block
from deconfound.data.readers.embedded import main_block
from deconfound.data.tables.keys import holds_wells, keys, row_and_column
from deconfound.data.tables.table import Roles, joined, joined_key, natural_order
from deconfound.embeddings.file import PREDICTED, Embeddings, open_embeddings
from deconfound.reports.sources import Sample


class Split(NamedTuple):
    """What was held out, and the seed of the run."""

    fold: str
    seed: int


@dataclass(frozen=True)
class Cells:
    """All rows of one embeddings file, without its embeddings."""

    name: str
    """The method, as in `RunSource`."""
    path: Path
    about: dict[str, Any]
    split: Split
    part: npt.NDArray[np.str_]
    """(N,) part of each row."""
    label: pd.Series
    """(N,) category; missing where a row has none. So are `predicted` and `environment`."""
    predicted: pd.Series
    environment: pd.Series
    wells: pd.DataFrame | None
    """Plate (category), row and column (from 1; 0 if unknown) of each row; None without wells."""
    trained: frozenset[str]
    """The labels that the run was trained on."""

    @property
    def held_out(self) -> Mask:
        """(N,) whether a row is of the test part."""
        return np.asarray(self.part == "test")

    @property
    def level(self) -> str:
        """The level held out, "iid" or "given"."""
        return self.split.fold.partition("=")[0]

    def block(self) -> Floats:
        """(N, D) float32: the block that follows the label; read from the file each time.

        Raises UserError if it holds NaN or infinity.
        """
        opened, _ = open_embeddings(self.path, lambda names: [main_block(names)])
        return opened.block(main_block(list(opened.representations)), str(self.path))


def read_cells(samples: Sequence[Sample]) -> list[Cells]:
    """The rows of the embeddings files of a report, by method, fold and seed.

    Left out are files of genes, and those of runs that leave a further group out of training, from
    which methods are chosen. Of several files of one method, fold, seed and screen the first
    counts. Raises UserError if a file can no longer be read.
    """
    found: dict[tuple[str, ...], Cells] = {}
    for sample in samples:
        about = sample.about
        key = (sample.name, *(str(about.get(name)) for name in ("fold", "seed", "screen")))
        nested = about["config"].get("data", {}).get("without") is not None
        if "aggregated" not in about and not nested and key not in found:
            found[key] = _read(sample)
    return sorted(
        found.values(),
        key=lambda one: (natural_order(one.name), natural_order(one.split.fold), one.split),
    )


def shared_split(cells: Sequence[Cells]) -> list[Cells]:
    """One of each method: those of the fold, and then the seed, that most methods have."""
    having: dict[Split, dict[str, Cells]] = {}
    for one in cells:
        having.setdefault(one.split, {}).setdefault(one.name, one)
    best = max(having.values(), key=len, default={})
    return list(best.values())


def _read(sample: Sample) -> Cells:
    opened, _ = open_embeddings(sample.path, no_block)
    about, label, part = opened.about, opened.label(), opened.part
    columns = [str(opened.roles.label)]
    trained = {joined_key(str(name), columns) for name in about.get("labels", ())}
    trained = trained or set(label[part == "train"].dropna())
    return Cells(
        sample.name,
        sample.path,
        about,
        Split(fold_key(str(about["fold"]), opened.roles), int(about["seed"])),
        part,
        label.astype("category"),
        keys(opened.table[PREDICTED]).astype("category"),
        opened.environment().astype("category"),
        _wells(opened),
        frozenset(trained),
    )


def _wells(opened: Embeddings) -> pd.DataFrame | None:
    """Plate and place of each row; None if no column holds names of wells such as B03."""
    table, roles = opened.table, opened.roles
    named = (str(column) for column in table.columns if holds_wells(column))
    well = roles.well if roles.well in table.columns else next(named, None)
    if well is None:
        return None
    plate = _plate_columns(table, roles, well)
    name = keys(table[well], well=True)
    places = {text: row_and_column(text) for text in name.dropna().unique()}
    row, column = (
        name.map({text: place[axis] for text, place in places.items() if place}).fillna(0)
        for axis in (0, 1)
    )
    if not (row > 0).any():
        return None
    plates = joined(table, plate) if plate else pd.Series("", index=table.index)
    return pd.DataFrame(
        {
            "plate": plates.astype("category"),
            "row": row.astype(np.int64),
            "column": column.astype(np.int64),
        }
    )


def _plate_columns(table: pd.DataFrame, roles: Roles, well: str) -> list[str]:
    """The levels down to the plate; without levels a column of plates, or else the environment."""
    levels = down_to_well(roles.model_copy(update={"well": well}))[:-1]
    named = [str(column) for column in table.columns if str(column).lower().endswith("plate")]
    columns = levels or named[:1] or [one for one in roles.environment if one != well]
    return [column for column in columns if column in table.columns]
