"""Files of features (text, Parquet, AnnData, directories), read a part at a time."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deconfound.arrays import Floats
from deconfound.data.readers.anndata_table import AnnDataTable
from deconfound.data.readers.deepprofiler import DeepProfilerFolder
from deconfound.data.readers.embedded import INDEX, EmbeddedDirectory
from deconfound.data.readers.features import (
    CHUNK_VALUES,
    FEATURES_KEY,
    FeatureTable,
    Part,
    single,
)
from deconfound.data.tables.compressed import (
    encoding_of,
    readable,
    refuse_unfit_packing,
    table_kind,
)
from deconfound.data.tables.decoding import decoded
from deconfound.data.tables.separators import comma_hint, separator_of, with_points
from deconfound.errors import UserError
from deconfound.files import seal


def open_features(path: Path, part: Part | None = None) -> FeatureTable:
    """Open a `.csv`, `.tsv` or `.txt` (also packed: `.gz`, `.bz2`, `.xz`), `.parquet` or `.h5ad`.

    `part` chooses one of AnnData other than X. A directory is one of embeddings that `embed`
    wrote, or of DeepProfiler's `.npz` files. Raises UserError if it is missing, damaged, or another
    kind of file.
    """
    path = Path(path)
    if path.suffix != ".h5ad" and part is not None and part != Part():
        raise UserError(f"{path}: --layer and --obsm belong to .h5ad files; leave them out")
    if path.is_dir():
        return EmbeddedDirectory(path) if (path / INDEX).is_file() else DeepProfilerFolder(path)
    kinds: dict[str, Callable[[Path], FeatureTable]] = {
        ".csv": _Text, ".tsv": _Text, ".txt": _Text, ".parquet": _Parquet,
        ".h5ad": partial(AnnDataTable, part=part or Part()),
    }  # fmt: skip
    kind = kinds.get(table_kind(path))
    if kind is None or not path.is_file():
        what = "no such table" if kind else "not a table of profiles"
        raise UserError(
            f"{path}: {what}; give a .csv, .tsv, .txt, .parquet or .h5ad file, or a directory of "
            "embeddings or of DeepProfiler's .npz files"
        )
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
            yield single(numbers.to_numpy(dtype=np.float64))

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
            yield single(frame.to_numpy(dtype=np.float64, na_value=np.nan))
