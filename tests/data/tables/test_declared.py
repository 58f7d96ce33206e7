"""Parquet tables that declare more than a file of their size can hold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconfound.data.readers.feature_files import open_features
from deconfound.data.tables import declared
from deconfound.data.tables.table import read_table
from deconfound.errors import UserError


def test_many_rows_in_a_small_file_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """140 million rows of one value."""
    file, rows = tmp_path / "t.parquet", 7 * 10**7
    codes = pa.array(np.zeros(rows, np.int8))
    table = pa.table({"Metadata_Plate": pa.DictionaryArray.from_arrays(codes, ["p"])})
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for _ in range(2):
            writer.write_table(table, row_group_size=rows)
    for read in (read_table, open_features):
        with pytest.raises(UserError, match=r"140,000,000 rows of 1 columns, 1.0 GiB .* 256 times"):
            read(file)


def test_few_rows_that_unpack_to_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "ALWAYS", 2**20)
    pd.DataFrame({"a": ["x" * 2**22]}).to_parquet(tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"1 rows of 1 columns, 0.0 GiB in a file of"):
        read_table(tmp_path / "t.parquet")


def test_an_honest_table_may_be_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "ALWAYS", 2**10)
    table = pd.DataFrame({"path": [f"{row:06d}.png" for row in range(5000)], "plate": "p"})
    table.to_parquet(tmp_path / "t.parquet", compression="zstd")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)


def test_long_texts_that_are_stored_once_and_repeated_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of 1 MB in 200 rows takes 200 MB; one in a single row, among short ones, 1 MB."""
    monkeypatch.setattr(declared, "ALWAYS", 2**24)
    long = "x" * 2**20
    for name, texts in {"bad": [long] * 200, "good": [long] + ["y"] * 199}.items():
        pd.DataFrame({"a": texts, "b": "z"}).to_parquet(tmp_path / name, compression="zstd")
        (tmp_path / name).rename(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"bad\.parquet: declares texts in column 'a', 0\.2 GiB"):
        read_table(tmp_path / "bad.parquet")
    assert read_table(tmp_path / "good.parquet")["a"].iloc[0] == long
