from pathlib import Path

import pandas as pd
import pytest

from deconfound.data.ingest.rows import FileColumn, ImageColumns, image_columns, row_files
from deconfound.errors import UserError


def table(*columns: str) -> pd.DataFrame:
    return pd.DataFrame({column: [column] for column in columns})


def test_one_column_of_paths() -> None:
    for name in ("Metadata_Path", "path", "FILE", "FileName", "image"):
        assert image_columns(table("y", name), "t.csv") == ImageColumns((FileColumn(name),))
    found = image_columns(table("path", "image", "x"), "t.csv", path="x")
    assert found == ImageColumns((FileColumn("x"),))
    with pytest.raises(UserError, match=r"path and image could both .* --path-column"):
        image_columns(table("path", "image"), "t.csv")
    with pytest.raises(UserError, match=r"no column of image paths; .* --path-column"):
        image_columns(table("x"), "t.csv")
    with pytest.raises(UserError, match="did you mean 'path'"):
        image_columns(table("path"), "t.csv", path="paht")


def test_one_column_per_channel() -> None:
    both = table("dna", "er", "Path")
    found = image_columns(both, "t.csv", per_channel=("er", "dna"))
    assert found == ImageColumns((FileColumn("er"), FileColumn("dna")), ("er", "dna"))
    named = image_columns(both, "t.csv", per_channel=("er", "dna"), channels=("A", "B"))
    assert named.channels == ("A", "B")
    with pytest.raises(UserError, match=r"2 --channel-columns, but --channels names 1 \(A\)"):
        image_columns(both, "t.csv", per_channel=("er", "dna"), channels=("A",))
    with pytest.raises(UserError, match="'dan'; did you mean 'dna'"):
        image_columns(both, "t.csv", per_channel=("dan",))
    with pytest.raises(UserError, match="both given"):
        image_columns(both, "t.csv", path="Path", per_channel=("dna",))


@pytest.mark.parametrize("prefix", ["", "Image_"])
def test_names_of_cellprofiler(prefix: str) -> None:
    names = [f"{prefix}{kind}_{x}" for x in ("DNA", "ER") for kind in ("FileName", "PathName")]
    expected = (FileColumn(*names[:2]), FileColumn(*names[2:]))
    found = image_columns(table(*names, "Metadata_Plate"), "t.csv")
    assert found == ImageColumns(expected, ("DNA", "ER"))
    chosen = image_columns(table(*names), "t.csv", channels=("ER",))
    assert chosen == ImageColumns(expected[1:], ("ER",))
    with pytest.raises(UserError, match=r"FileName_DAN .* did you mean 'DNA'"):
        image_columns(table(*names), "t.csv", channels=("DAN",))
    with pytest.raises(UserError, match=rf"Path and {prefix}FileName_DNA .* could both"):
        image_columns(table("Path", *names), "t.csv")


def test_folder_and_name_make_the_path(tmp_path: Path) -> None:
    (tmp_path / "w1").mkdir()
    for name in ("w1/a.tif", "w1/b.tif", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    values = pd.DataFrame(
        {
            "FileName_A": ["a.tif", "b.tif"],
            "PathName_A": ["w1/", str(tmp_path / "w1")],
            "FileName_B": ["c.tif", "w1/a.tif"],
        }
    )
    files = row_files(values, image_columns(values, "t.csv"), tmp_path, "t.csv", shared=True)
    expected = [("w1/a.tif", "c.tif"), ("w1/b.tif", "w1/a.tif")]
    assert files == [tuple(tmp_path / name for name in row) for row in expected]
    values["PathName_A"] = "w2"
    with pytest.raises(UserError, match=r"row 0 \(from 0\): column 'FileName_A': no file .*w2/a"):
        row_files(values, image_columns(values, "t.csv"), tmp_path, "t.csv")
    values["FileName_A"], values["PathName_A"] = values["FileName_B"], "."
    with pytest.raises(UserError, match=r"row 0 .* FileName_A, FileName_B name the same file"):
        row_files(values, image_columns(values, "t.csv"), tmp_path, "t.csv")
