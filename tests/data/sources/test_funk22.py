"""Funk22 from LMDBs that the tests write; they are skipped where lmdb is not installed."""

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.fold import make_fold
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import pose
from deconfound.data.readers import lmdb
from deconfound.data.readers.resizing import resampled
from deconfound.data.screens.screen import Screen
from deconfound.data.sources import funk22
from deconfound.data.tables.table import joined
from deconfound.errors import UserError
from deconfound.files import growing

PLATES = ("20200202_6W-LaC024A", "20200206_6W-LaC025B")
CONFIG = funk22.Config(size=8, threads=1)


def key_table(folder: str, cells: int) -> pd.DataFrame:
    """Cells of two plates and, every tenth, of one that is not used; all away from the border."""
    row = np.arange(cells)
    guides = [f"{folder}{number % 4}" for number in row]
    genes = ["nontargeting" if folder == "ntc" else f"GENE{number % 4 // 2}" for number in row]
    plates = np.array(PLATES)[row % 2]
    plates[row % 10 == 9] = "20200202_6W-LaC024B"
    return pd.DataFrame(
        {
            "UID": [f"{number:08}" for number in row],
            "plate": plates,
            "well": np.array(["A1", "A2", "B1"])[row // 2 % 3],
            "tile": [f"{99 + number % 5:03d}" for number in row],
            "gene_symbol_0": genes,
            "sgRNA_0": guides,
            "index": 7 * row,
            "cell_i": 60.0 + row,
            "cell_j": 1000.5,
            "stage": "interphase",
        }
    )


def crop(key: str) -> npt.NDArray[np.uint16]:
    """Pixels that tell the record."""
    return np.random.default_rng(zlib.crc32(key.encode())).integers(
        0, 20_000, (4, 100, 100), dtype=np.uint16
    )


def keys_of(table: pd.DataFrame) -> pd.Series:
    columns = ["UID", "plate", "well", "tile", "gene_symbol_0", "index"]
    return table[columns].astype(str).agg("_".join, axis=1)


def write_records(folder: Path, table: pd.DataFrame, **changed: bytes | None) -> None:
    """An LMDB with the crop of every cell; `changed` gives other records, or None, by UID."""
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with (
        lmdb.open(str(folder), map_size=2**26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key in keys_of(table):
            record = changed.get("uid" + key[:8], crop(key).astype("<u2").tobytes())
            if record is not None:
                transaction.put(key.encode(), record)


def write_archive(root: Path, cells: int = 40, **changed: bytes | None) -> Path:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    for folder, count in (("perturbed", cells), ("ntc", cells // 4)):
        (root / folder).mkdir(parents=True)
        table = key_table(folder, count)
        table.to_csv(root / folder / "key.csv", index=False)
        write_records(root / folder, table, **(changed if folder == "perturbed" else {}))
    return root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "archive")


def changed_keys(root: Path, folder: str, row: int, **values: Any) -> None:
    file = root / folder / "key.csv"
    table = pd.read_csv(file, dtype=str)
    for column, value in values.items():
        table.loc[row, column] = str(value)
    table.to_csv(file, index=False)


def test_every_cell_kept_has_its_own_pixels_and_metadata(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(funk22, "ROWS_READ", 7)
    screen = funk22.make(archive, tmp_path / "screen", CONFIG)
    given = pd.concat([key_table("perturbed", 40), key_table("ntc", 10)], ignore_index=True)
    kept = given[given["plate"].isin(PLATES)].reset_index(drop=True)
    assert (len(screen), screen.image_shape, screen.dtype) == (45, (4, 8, 8), np.uint16)
    expected = np.stack([resampled(crop(key), (8, 8)) for key in keys_of(kept)])
    np.testing.assert_array_equal(screen.read(np.arange(45)), expected)
    assert screen.channels == ("DNA damage", "F-actin", "DNA content", "Microtubules")
    table = screen.table
    for column, of_key in (("Metadata_Gene", "gene_symbol_0"), ("Metadata_sgRNA", "sgRNA_0"),
                           ("Metadata_Plate", "plate"), ("Metadata_Well", "well"),
                           ("Metadata_Site", "tile")):  # fmt: skip
        assert table[column].tolist() == kept[of_key].astype(str).tolist(), column
    control = table["Metadata_Gene"] == "nontargeting"
    assert table["Metadata_Control_Type"].eq("negcon").tolist() == control.tolist()
    assert table["Metadata_CellID"].is_unique
    assert screen.provenance["cells"]["perturbed"] == {
        "rows": 40, "of_other_plates": 4, "dropped_at_border": 0,
    }  # fmt: skip


def test_the_environment_is_plate_and_well_and_the_split_is_random(
    archive: Path, tmp_path: Path
) -> None:
    screen = funk22.make(archive, tmp_path / "screen", CONFIG)
    assert screen.roles.environment == screen.roles.levels == ("Metadata_Plate", "Metadata_Well")
    assert joined(screen.table, screen.roles.environment).nunique() == 6
    assert screen.index.transform == "arcsinh"
    fold = make_fold(screen.table, screen.roles, "given")
    counts = fold.counts()
    assert (counts["train"], counts["val"], counts["test"]) == (37, 1, 7)
    other = funk22.make(archive, tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    assert not other.table["Metadata_Split"].equals(screen.table["Metadata_Split"])
    problem = pose(screen, DataOptions(fold="given"))
    assert problem.label.names == ("GENE0", "GENE1", "nontargeting")
    assert len(groups(screen.table, screen.roles, "Metadata_Well")) == 6


def test_the_split_has_the_papers_shares() -> None:
    cells = pd.DataFrame({name: ["a"] * 1_000 for name in (*funk22.CATEGORIES.values(), "UID")})
    tables = [cells.assign(Metadata_Control_Type=kind) for kind in funk22.FOLDERS.values()]
    split = funk22._screen_table(tables, funk22.Config())["Metadata_Split"]
    assert split.value_counts().to_dict() == {"train": 1660, "test": 300, "val": 40}
    assert 0.7 < (split[:1_000] == "train").mean() < 0.9


@pytest.mark.parametrize(
    ("place", "kept"), [(49.9, False), (50.0, True), (2910.0, True), (2910.1, False)]
)
@pytest.mark.parametrize("column", ["cell_i", "cell_j"])
def test_cells_at_the_border_of_their_tile_are_dropped(
    archive: Path, tmp_path: Path, column: str, place: float, kept: bool
) -> None:
    changed_keys(archive, "perturbed", 3, **{column: place})
    screen = funk22.make(archive, tmp_path / "screen", CONFIG)
    assert ("perturbed/00000003" in set(screen.table["Metadata_CellID"])) == kept
    assert screen.provenance["cells"]["perturbed"]["dropped_at_border"] == (0 if kept else 1)


@pytest.mark.parametrize("call", [1, 9, 36, 40])
def test_a_stopped_call_goes_on_and_ends_with_the_same_bytes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    def files(screen: Screen) -> dict[str, bytes]:
        screen.check()
        return {file.name: file.read_bytes() for file in screen.path.iterdir()}

    monkeypatch.setattr(growing, "MARK_SECONDS", 0)
    monkeypatch.setattr(funk22, "CHUNK_IMAGES", 2)
    whole = files(funk22.make(archive, tmp_path / "whole" / "screen", CONFIG))
    calls = 0

    def stopping(image: Any, size: tuple[int, int]) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return resampled(image, size)

    monkeypatch.setattr(funk22, "resampled", stopping)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        funk22.make(archive, tmp_path / "screen", CONFIG)
    assert not (tmp_path / "screen").exists()
    before, call = calls, 0
    assert files(funk22.make(archive, tmp_path / "screen", CONFIG)) == whole
    again = calls - before
    assert again <= 45 - (before - 1) + 8


KILLED = """
import os, signal, sys
from pathlib import Path
from deconfound.files import growing
from deconfound.data.sources import funk22
growing.MARK_SECONDS = 0
funk22.CHUNK_IMAGES = 2
read = funk22.resampled
calls = []
def resampled(image, size):
    calls.append(1)
    if len(calls) == 31:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(image, size)
funk22.resampled = resampled
funk22.make(Path(sys.argv[1]), Path(sys.argv[2]), funk22.Config(size=8, threads=1))
"""


def test_a_killed_call_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "screen"
    words = [sys.executable, "-c", KILLED, str(archive), str(out)]
    killed = subprocess.run(words, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert killed.returncode == -signal.SIGKILL
    read: list[int] = []

    def counting(image: Any, size: tuple[int, int]) -> Any:
        read.append(1)
        return resampled(image, size)

    monkeypatch.setattr(funk22, "resampled", counting)
    screen = funk22.make(archive, out, CONFIG)
    screen.check()
    assert 15 <= len(read) < 30
    whole = funk22.make(archive, tmp_path / "whole", CONFIG)
    assert screen.identity == whole.identity


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"UID": "00000003"}, r"rows 3 and 5 \(from 0\) have the same UID \(00000003\)"),
        ({"gene_symbol_0": ""}, r"'gene_symbol_0' is empty in rows 5 \(from 0\)"),
        ({"sgRNA_0": ""}, r"'sgRNA_0' is empty in rows 5 \(from 0\)"),
        ({"sgRNA_0": "perturbed3"}, "sgrna_0 'perturbed3' is of gene_symbol_0 'GENE1' in row 3"),
        ({"index": "1"}, "no record '00000005_.*_1', which .*key.csv has as cell 5"),
        ({"cell_i": "far"}, "cannot be read as a table"),
    ],
)  # fmt: skip
def test_a_wrong_key_table_is_one_clear_line(
    archive: Path, tmp_path: Path, values: dict[str, str], message: str
) -> None:
    changed_keys(archive, "perturbed", 5, **values)
    with pytest.raises(UserError, match=message) as caught:
        funk22.make(archive, tmp_path / "screen", CONFIG)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"archive"}


def test_a_column_that_is_missing_is_named(archive: Path, tmp_path: Path) -> None:
    file = archive / "ntc" / "key.csv"
    pd.read_csv(file, dtype=str).drop(columns="cell_j").to_csv(file, index=False)
    with pytest.raises(UserError, match="there is no column 'cell_j'; did you mean 'cell_i'"):
        funk22.make(archive, tmp_path / "screen", CONFIG)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "no record '00000023_"),
        (b"\0" * 79_998, "record '00000023_.*' has 79,998 bytes; expected 80,000, 4 × 100 × 100"),
    ],
)
def test_a_damaged_lmdb_is_one_clear_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: bytes | None, message: str
) -> None:
    archive = write_archive(tmp_path / "archive", uid00000023=record)
    monkeypatch.setattr(funk22, "KEYS", 10)
    monkeypatch.setattr(lmdb.LmdbImages, "read", lambda *_: pytest.fail("read a record"))
    with pytest.raises(UserError, match=message):
        funk22.make(archive, tmp_path / "screen", CONFIG)


def test_an_lmdb_that_is_cut_off_is_one_clear_line(archive: Path, tmp_path: Path) -> None:
    """Its pages are mapped, and touching one that is not there ends the process with SIGBUS."""
    data = archive / "perturbed" / "data.mdb"
    whole = data.stat().st_size
    os.truncate(data, whole // 2)
    with pytest.raises(UserError, match=f"is cut off, {whole // 2:,} bytes of at least") as caught:
        funk22.make(archive, tmp_path / "screen", CONFIG)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "screen").exists()


def test_a_screen_without_controls_is_refused(archive: Path, tmp_path: Path) -> None:
    file = archive / "ntc" / "key.csv"
    pd.read_csv(file, dtype=str).assign(plate="another").to_csv(file, index=False)
    with pytest.raises(UserError, match="no controls on these plates"):
        funk22.make(archive, tmp_path / "screen", CONFIG)


def test_plates_without_cells_are_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cells of the plates P9 .* --plates"):
        funk22.make(archive, tmp_path / "screen", CONFIG.model_copy(update={"plates": ("P9",)}))


def test_another_folder_is_one_clear_line(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LMDB that can be read"):
        funk22.make(tmp_path / "nowhere", tmp_path / "screen", CONFIG)
    (archive / "ntc" / "key.csv").unlink()
    with pytest.raises(UserError, match="--root is the folder with perturbed/ and ntc/"):
        funk22.make(archive, tmp_path / "screen", CONFIG)


def test_without_lmdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"source funk22 needs the extra \[lmdb\]"):
        funk22.make(tmp_path, tmp_path / "screen", CONFIG)
