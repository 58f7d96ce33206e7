"""Tables of text that are compressed."""

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.tables import compressed
from deconfound.data.tables.compressed import table_kind
from deconfound.data.tables.table import read_table
from deconfound.errors import UserError

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def profiles(rows: int = 12) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    table = pd.DataFrame(values, columns=["Cells_A", "Nuclei_B"]).astype(str)
    table["Metadata_Gene"] = [f"0{row % 3}" for row in range(rows)]
    table["Metadata_Plate"] = [f"P{row % 2}" for row in range(rows)]
    return table


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("kind", "separator"), [(".csv", ","), (".TSV", "\t")])
def test_a_packed_table_is_its_text(tmp_path: Path, suffix: str, kind: str, separator: str) -> None:
    text = "\ufeff" + profiles().to_csv(index=False, sep=separator)
    file = tmp_path / f"Cells.v2{kind}{suffix}"
    file.write_bytes(PACK[suffix](text.encode()))
    pd.testing.assert_frame_equal(read_table(file), profiles())
    screen = ingest_profiles(file, tmp_path / "s", quiet=True)
    assert screen.channels == ("Cells_A", "Nuclei_B")
    expected = profiles()[list(screen.channels)].astype(np.float32)
    np.testing.assert_array_equal(screen.read(range(12)), expected)


@pytest.mark.parametrize("suffix", PACK)
def test_what_is_damaged_or_unpacks_to_too_much_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"t.csv{suffix}"
    packed = PACK[suffix](profiles(600).to_csv(index=False).encode())
    file.write_bytes(packed[: len(packed) // 2])
    for read in (read_table, lambda path: ingest_profiles(path, tmp_path / "s", quiet=True)):
        with pytest.raises(UserError, match=rf"t\.csv{suffix}: cannot be unpacked \("):
            read(file)
    with monkeypatch.context() as patched:
        patched.setattr(compressed, "MAX_TEXT", 2**20)
        file.write_bytes(PACK[suffix](b"a,b\n" + b",\n" * 2**17))
        with pytest.raises(UserError, match=r"unpacks to more than .* GiB of text; unpack"):
            read_table(file)
    file.write_bytes(packed)
    monkeypatch.setattr(compressed, "MAX_TEXT", 2**14)
    for read in (read_table, lambda path: ingest_profiles(path, tmp_path / "s", quiet=True)):
        with pytest.raises(UserError, match=r"unpacks to more than .* GiB of text; unpack"):
            read(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_only_text_is_unpacked(tmp_path: Path) -> None:
    assert table_kind(Path("a.b.CSV.GZ")) == ".csv"
    assert table_kind(Path("a.csv.parquet")) == ".parquet"
    for name in ("t.parquet.gz", "t.gz", "t.zip"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(UserError, match="not a table"):
            read_table(tmp_path / name)
