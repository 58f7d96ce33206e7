"""A table of features: what every kind of file of them offers, and which columns are features."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.tables.compressed import readable
from deconfound.data.tables.table import Roles, require_columns
from deconfound.errors import UserError

COMPARTMENTS = ("Cells_", "Cytoplasm_", "Nuclei_")
NO_FEATURE = re.compile(
    r"(^|_)(Location|Parent|Metadata)_|_(Center|BoundingBox(Min|Max)imum)_[XYZ]$"
    r"|Number_Object_Number|ObjectNumber|ImageNumber"
)
"""Coordinates, parents and identifiers among the columns of CellProfiler."""
FEATURES_KEY = b"deconfound.features"
"""Metadata of a Parquet file: the JSON list of the columns that are features."""
CHUNK_VALUES = 2**21


class Part(NamedTuple):
    """Where in AnnData profiles are, if not in X."""

    layer: str | None = None
    obsm: str | None = None


class FeatureTable:
    """An opened table of features; damage found in any part of it is one UserError."""

    columns: list[str]
    """Every column, in order."""
    features: list[str] | None = None
    """The columns that the file itself says are features; None where it does not say."""
    roles: Roles | None = None
    """The roles of the columns, where the file itself says them, as embeddings do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        """The columns named that are no features, one row per profile."""
        with readable(self._path):
            return self._metadata(columns)

    def chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        """The columns named, (B, D) at a time, in order; what is missing is NaN."""
        with readable(self._path):
            yield from self._chunks(columns)

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        raise NotImplementedError

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        raise NotImplementedError


def feature_columns(table: FeatureTable, wanted: Sequence[str], where: str) -> list[str]:
    """The features of a table: those `wanted` ("*" stands for anything), or those it names itself.

    If the table names none, the columns of CellProfiler that begin with Cells_, Cytoplasm_ or
    Nuclei_, without coordinates, parents and identifiers. Raises UserError if there is none.
    """
    if wanted:
        chosen: dict[str, None] = {}
        for name in wanted:
            matched = [column for column in table.columns if fnmatchcase(column, name)]
            if name not in matched and not matched:
                require_columns(pd.DataFrame(columns=table.columns), [name], where)
            chosen |= dict.fromkeys(matched)
        return list(chosen)
    if table.features is not None:
        return table.features
    own = (name for name in table.columns if name.startswith(COMPARTMENTS))
    found = [name for name in own if not NO_FEATURE.search(name)]
    if not found:
        raise UserError(
            f"{where}: no feature columns (looked for {', '.join(COMPARTMENTS)}); name them with "
            "--feature-columns"
        )
    return found


def single(values: npt.NDArray[Any]) -> Floats:
    """`values` as float32; a value too large for float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)
