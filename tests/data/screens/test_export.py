"""A screen as files, and back."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound import cli
from deconfound.data.screens.export import FOLDER_FILES, export
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import EXPORTED_PATH, Roles
from deconfound.errors import UserError

ROLES = Roles(
    label="drug", environment=("batch", "plate"), levels=("batch",), well="well", split="part"
)


def table_of(rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Path": [f"somewhere/{row}.png" for row in range(rows)],
            "drug": ['5" µM, "x"', "taxol", "α\nβ"] * (rows // 3),
            "batch": [f"0{row % 2}" for row in range(rows)],
            "plate": [f"0{row % 3}" for row in range(rows)],
            "well": ["A01"] * rows,
            "part": ["train", None, "test"] * (rows // 3),
            "dose": np.arange(rows) / 3,
        }
    )


def written(path: Path, values: np.ndarray, table: pd.DataFrame) -> Screen:
    names = ("DNA", "actin filaments", "ER", "mito")[: values.shape[1]]
    with ScreenWriter(path, "tiny", names, ROLES, {"made_by": "test"}) as writer:
        writer.append(values)
        writer.finish(table)
    return open_screen(path)


def again(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.chdir(folder)
    cli.main([*shlex.split(command)[1:], "--quiet"])
    return open_screen(folder / "tiny-again")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_come_back_equal(
    tmp_path: Path, channels: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 255, (6, channels, 9, 7)).astype(dtype)
    screen = written(tmp_path / "s", values, table_of(6))
    command = export(screen.path, tmp_path / "out put", quiet=True)
    back = again(command, tmp_path, monkeypatch)
    assert (back.channels, back.roles, back.dtype) == (screen.channels, ROLES, screen.dtype)
    assert back.name == "tiny"
    np.testing.assert_array_equal(back.read(range(6)), values)
    assert list(back.table.columns) == [*screen.table.columns, EXPORTED_PATH]
    for column in screen.table.columns:
        expected = screen.table[column].astype("string")
        pd.testing.assert_series_equal(back.table[column].astype("string"), expected)


def test_files_are_ome_tiff_of_1000_a_folder(tmp_path: Path) -> None:
    values = np.arange(1002 * 2 * 4, dtype=np.uint16).reshape(1002, 2, 2, 2)
    export(written(tmp_path / "s", values, table_of(1002)).path, tmp_path / "out", quiet=True)
    folders = sorted((tmp_path / "out" / "images").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [FOLDER_FILES, 2]
    with tifffile.TiffFile(tmp_path / "out" / "images" / "00001" / "00001001.ome.tif") as file:
        assert file.is_ome
        assert 'Name="actin filaments"' in str(file.ome_metadata)
        np.testing.assert_array_equal(file.asarray(), values[1001])


def test_profiles_come_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    screen = written(tmp_path / "s", values, table_of(6))
    back = again(export(screen.path, tmp_path / "out", quiet=True), tmp_path, monkeypatch)
    assert (back.channels, back.roles, back.holds_profiles) == (screen.channels, ROLES, True)
    np.testing.assert_array_equal(back.read(range(6)), values)
    pd.testing.assert_frame_equal(back.table, screen.table)
    found = pd.read_parquet(tmp_path / "out" / "table.parquet")
    np.testing.assert_array_equal(found[list(screen.channels)].to_numpy(), values)


def test_what_would_not_come_back_is_refused(tmp_path: Path) -> None:
    table = table_of(6).assign(drug=["taxol", ""] * 3)
    values = np.zeros((6, 1, 4, 4), np.uint8)
    screen = written(tmp_path / "s", values, table)
    with pytest.raises(UserError, match=r"column 'drug' is '' in row 1 .* rename the value"):
        export(screen.path, tmp_path / "out", quiet=True)
    shared = written(tmp_path / "p", np.zeros((6, 2), np.float32), table.assign(DNA=1))
    with pytest.raises(UserError, match="'DNA' is a feature and a column"):
        export(shared.path, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        export(screen.path, tmp_path / "out", quiet=True)
