"""DeepProfiler's folder of features: one .npz for each site, whose rows are cells."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.readers.features import FeatureTable, single
from deconfound.errors import UserError

FEATURES, LOCATIONS = "features", "locations"
PLACE = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
NUMBER = "Metadata_ObjectNumber"
CENTRE = ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y")
PREFIX = "DP_"
"""What pycytominer puts before the number of a feature."""


class DeepProfilerFolder(FeatureTable):
    """PLATE/WELL/SITE.npz or PLATE/WELL_SITE.npz; plate, well and site are taken from the path.

    The array `metadata` is pickled, and so is not read: plate, well and site join what else is
    known.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = sorted(path.rglob("*.npz"))
        if not self._files:
            raise UserError(
                f"{path}: a directory without {PLACE[0][9:].lower()} folders of .npz files; give "
                "DeepProfiler's folder of features, or a directory of embeddings"
            )
        self._rows, tables = [], []
        widths: set[int] = set()
        for file in self._files:
            values = self._read(file, FEATURES)
            if values is None or values.ndim != 2:
                raise UserError(
                    f"{file}: no array {FEATURES!r} of cells × features, as DeepProfiler writes; "
                    "remove it, or give another folder"
                )
            if len(values):
                widths.add(values.shape[1])
                tables.append(self._table(file, len(values)))
                self._rows.append(file)
            if len(widths) > 1:
                raise UserError(
                    f"{file}: {values.shape[1]} features, but {min(widths - {values.shape[1]})} in "
                    "files before it; give the files of one model"
                )
        if not tables:
            raise UserError(f"{path}: no cell in {len(self._files)} .npz files")
        self._table_of_cells = pd.concat(tables, ignore_index=True)
        self.features = [f"{PREFIX}{number}" for number in range(widths.pop())]
        self.columns = [*map(str, self._table_of_cells.columns), *self.features]

    def _table(self, file: Path, cells: int) -> pd.DataFrame:
        inside = file.relative_to(self._path).with_suffix("").parts
        if len(inside) == 2 and "_" in inside[1]:
            well, _, site = inside[1].rpartition("_")
            inside = (inside[0], well, site)
        if len(inside) < 3:
            raise UserError(
                f"{file}: expected PLATE/WELL/SITE.npz or PLATE/WELL_SITE.npz below {self._path}; "
                "give the folder that holds the plates"
            )
        table = pd.DataFrame(dict(zip(PLACE, inside[-3:], strict=True)), index=range(cells))
        table[NUMBER] = np.arange(1, cells + 1)
        centres = self._read(file, LOCATIONS)
        if centres is not None and centres.shape == (cells, 2):
            table[list(CENTRE)] = centres
        return table

    def _read(self, file: Path, key: str) -> npt.NDArray[Any] | None:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return np.asarray(stored[key]) if key in stored.files else None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{file}: array {key!r} cannot be read ({str(error).splitlines()[0]}); expected "
                "numbers, as DeepProfiler writes"
            ) from error

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        kept = self._table_of_cells
        return kept[[name for name in columns if name in kept.columns]].copy()

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        place = [int(name.removeprefix(PREFIX)) for name in columns]
        for file in self._rows:
            values = self._read(file, FEATURES)
            assert values is not None
            yield single(values[:, place])
