"""Tables of features (text, Parquet, AnnData), read a part at a time."""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deconfound.arrays import Floats
from deconfound.data.readers.hdf5 import refuse_unfit_hdf5
from deconfound.data.tables.compressed import (
    encoding_of,
    readable,
    refuse_unfit_packing,
    table_kind,
)
from deconfound.data.tables.decoding import decoded
from deconfound.data.tables.separators import comma_hint, separator_of, with_points
from deconfound.data.tables.table import ROW_NAME, require_columns
from deconfound.errors import UserError
from deconfound.files import seal

COMPARTMENTS = ("Cells_", "Cytoplasm_", "Nuclei_")
NO_FEATURE = re.compile(
    r"(^|_)(Location|Parent|Metadata)_|_(Center|BoundingBox(Min|Max)imum)_[XYZ]$"
    r"|Number_Object_Number|ObjectNumber|ImageNumber"
)
"""Coordinates, parents and identifiers among the columns of CellProfiler."""
FEATURES_KEY = b"deconfound.features"
"""Metadata of a Parquet file: the JSON list of the columns that are features."""
CHUNK_VALUES = 2**21


class FeatureTable:
    """An opened table of features; damage found in any part of it is one UserError."""

    columns: list[str]
    """Every column, in order."""
    features: list[str] | None = None
    """The columns that the file itself says are features; None where it does not say."""

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


def open_features(path: Path) -> FeatureTable:
    """Open a `.csv`, `.tsv` or `.txt` (also packed: `.gz`, `.bz2`, `.xz`), `.parquet` or `.h5ad`.

    Raises UserError if it is missing, damaged, or another kind of file.
    """
    path = Path(path)
    kinds = {".csv": _Text, ".tsv": _Text, ".txt": _Text, ".parquet": _Parquet, ".h5ad": _AnnData}
    kind = kinds.get(table_kind(path))
    if kind is None or not path.is_file():
        what = "no such table" if kind else "not a table of profiles"
        raise UserError(f"{path}: {what}; give a .csv, .tsv, .txt, .parquet or .h5ad file")
    refuse_unfit_packing(path)
    if kind is not _Text:
        seal.verify(path)
    with readable(path):
        opened = kind(path)
    columns = opened.columns
    repeated = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one of them")
    return opened


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


class _Text(FeatureTable):
    """CSV, TSV and TXT: every value stays text until it is asked for as a number."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._separator = separator_of(path)
        self._read: Any = partial(
            pd.read_csv, path, dtype=str, sep=self._separator, encoding=encoding_of(path)
        )
        header = self._read(nrows=1, header=None)
        self.columns = [
            name if isinstance(name, str) else f"Unnamed: {place}"  # as pandas calls them below
            for place, name in enumerate(header.iloc[0])
        ]

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        parts = [part[list(columns)] for part in self._parts(missing=[""])]
        return pd.concat(parts, ignore_index=True)

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        for part in self._parts():
            text = part[list(columns)]
            if self._separator == ";":
                text = with_points(text)
            numbers = text.apply(pd.to_numeric, errors="coerce")
            wrong = (numbers.isna() & text.notna()).to_numpy()
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise UserError(
                    f"{self._path}: row {part.index[row]} (from 0), column {columns[column]!r}: "
                    f"{text.iat[row, column]!r} is no number{comma_hint(text.iat[row, column])}; "
                    "mend it, or name the features with --feature-columns"
                )
            yield _single(numbers.to_numpy(dtype=np.float64))

    def _parts(self, missing: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """The table, a part at a time; `missing` are the words for it, pandas' own if not given."""
        words = {} if missing is None else {"keep_default_na": False, "na_values": missing}
        rows = max(1, CHUNK_VALUES // len(self.columns))
        with warnings.catch_warnings():
            # A row longer than the header would otherwise lose a column with a warning only.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield from self._read(index_col=False, chunksize=rows, **words)


class _Parquet(FeatureTable):
    """Parquet; the file may name its features, as one that `export` wrote does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        self._types = {field.name: field.type for field in schema}
        self.columns = [name for name in schema.names if not name.startswith("__index_level_")]
        said = (schema.metadata or {}).get(FEATURES_KEY)
        self.features = None if said is None else json.loads(said)

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        read: pd.DataFrame = self._file.read(columns=list(columns)).to_pandas(ignore_metadata=True)
        return decoded(read, self._path)

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        for name in columns:
            kind = self._types[name]
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise UserError(
                    f"{self._path}: feature column {name!r} holds {kind}; expected numbers, name "
                    "the features with --feature-columns"
                )
        rows = max(1, CHUNK_VALUES // len(columns))
        for part in self._file.iter_batches(batch_size=rows, columns=list(columns)):
            frame = part.to_pandas(ignore_metadata=True)[list(columns)]
            yield _single(frame.to_numpy(dtype=np.float64, na_value=np.nan))


class _AnnData(FeatureTable):
    """AnnData: X holds the features, obs the metadata."""

    def __init__(self, path: Path) -> None:
        import anndata

        super().__init__(path)
        refuse_unfit_hdf5(path, streamed="X")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._data: Any = anndata.read_h5ad(path, backed="r")
        obs: pd.DataFrame = self._data.obs
        numbered = [str(row) for row in range(len(obs))]
        name = str(obs.index.name or ROW_NAME)
        if list(obs.index) != numbered and name not in obs.columns:
            obs = obs.assign(**{name: obs.index.astype(str)})
        self._obs = obs.reset_index(drop=True)
        self._names = [str(name) for name in self._data.var_names]
        self.columns = [*map(str, self._obs.columns), *self._names]
        self.features = [n for n in self._names if not NO_FEATURE.search(n)]
        if self._data.X is None or not self.features:
            raise UserError(f"{path}: X holds no features; expected profiles in X, one row each")
        if self._data.X.shape != (len(obs), len(self._names)):
            raise UserError(
                f"{path}: X of {self._data.X.shape}, but {len(obs)} rows in obs and "
                f"{len(self._names)} in var; write the file again"
            )

    def _metadata(self, columns: Sequence[str]) -> pd.DataFrame:
        return self._obs[[name for name in columns if name in self._obs.columns]].copy()

    def _chunks(self, columns: Sequence[str]) -> Iterator[Floats]:
        require_columns(pd.DataFrame(columns=self._names), columns, "var of the .h5ad file")
        place = [self._names.index(name) for name in columns]
        rows = max(1, CHUNK_VALUES // len(self._names))
        for start in range(0, len(self._obs), rows):
            part = self._data.X[start : start + rows]
            dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
            yield _single(dense[:, place])


def _single(values: npt.NDArray[Any]) -> Floats:
    """`values` as float32; a value too large for float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)
