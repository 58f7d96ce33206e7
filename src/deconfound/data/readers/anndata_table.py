"""AnnData as a table of features: X, a layer or a block of obsm; obs is the metadata."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.readers.embedded import OWN, main_block, own_names, own_roles, own_table
from deconfound.data.readers.features import CHUNK_VALUES, NO_FEATURE, FeatureTable, Part, single
from deconfound.data.readers.hdf5 import refuse_unfit_hdf5
from deconfound.data.tables.table import ROW_NAME, listed, require_columns
from deconfound.errors import UserError


class AnnDataTable(FeatureTable):
    """An `.h5ad` file. Of one that deconfound wrote the columns' roles are known, and the table is
    that of the screen."""

    def __init__(self, path: Path, part: Part) -> None:
        import anndata
        import h5py

        super().__init__(path)
        refuse_unfit_hdf5(path, streamed="X")
        with h5py.File(path) as file:
            self._has_x = "X" in file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._data: Any = anndata.read_h5ad(path, backed="r")
        described = self._data.uns.get(OWN)
        own = isinstance(described, dict) and "json" in described
        if own:
            self._obs = own_table(_named_rows(self._data.obs), described)
            self.roles = own_roles(described)
            if not self._has_x and part == Part():  # of an earlier build
                blocks = [name for name in self._data.obsm if name.startswith("X_")]
                part = Part(obsm=main_block(blocks)) if blocks else part
        else:
            self._obs = _named_rows(self._data.obs)
        self._values, self._names = self._part(part, own)
        self.columns = [*map(str, self._obs.columns), *self._names]
        self.features = [n for n in self._names if own or not NO_FEATURE.search(n)]
        if self._values is None or not self.features:
            raise UserError(
                f"{path}: X holds no features; expected profiles in X, one row each, or the name "
                f"of a --layer ({named_parts(self._data.layers) or 'it has none'}) or an --obsm "
                f"({named_parts(self._data.obsm) or 'it has none'})"
            )
        expected = (len(self._obs), len(self._names))
        if tuple(self._values.shape) != expected:
            raise UserError(
                f"{path}: X of {self._values.shape}, but {expected[0]} rows in obs and "
                f"{expected[1]} in var; write the file again"
            )

    def _part(self, part: Part, own: bool) -> tuple[Any, list[str]]:
        """The values, and the names of their columns."""
        if part.layer is not None and part.obsm is not None:
            raise UserError("--layer and --obsm are both given; give one of them")
        if part.obsm is not None:
            values = self._entry(self._data.obsm, part.obsm, "--obsm")
            if own:
                return values, own_names(part.obsm, values.shape[1])
            columns = getattr(values, "columns", range(values.shape[1]))
            return values, [f"{part.obsm}_{name}" for name in columns]
        names = [str(name) for name in self._data.var_names]
        if part.layer is not None:
            return self._entry(self._data.layers, part.layer, "--layer"), names
        return self._data.X if self._has_x else None, names

    def _entry(self, parts: Any, name: str, option: str) -> Any:
        if name not in parts:
            raise UserError(
                f"{self._path}: no {option} {name!r}; it has {named_parts(parts) or 'none'}"
            )
        return parts[name]

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        return self._obs[[name for name in columns if name in self._obs.columns]].copy()

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        require_columns(pd.DataFrame(columns=self._names), columns, "var of the .h5ad file")
        place = [self._names.index(name) for name in columns]
        rows = max(1, CHUNK_VALUES // len(self._names))
        for start in range(0, len(self._obs), rows):
            part = getattr(self._values, "iloc", self._values)[start : start + rows]
            dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
            yield single(dense[:, place])


def named_parts(parts: Iterable[object]) -> str:
    """The names of layers or blocks, for a message; X among the layers of anndata 0.13 has none."""
    return listed(part for part in parts if part is not None)


def _named_rows(obs: pd.DataFrame) -> pd.DataFrame:
    """`obs` with the names of its rows as the last column, unless they are numbers."""
    numbered = [str(row) for row in range(len(obs))]
    name = str(obs.index.name or ROW_NAME)
    if list(obs.index) != numbered and name not in obs.columns:
        obs = obs.assign(**{name: obs.index.astype(str)})
    return obs.reset_index(drop=True)
