"""Tables of text whose cells stand between tabs, commas or semicolons, whatever their name says."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.data.ingest.fields import centres
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.tables.separators import separator_of
from deconfound.data.tables.table import read_table
from deconfound.errors import UserError

TABLE = pd.DataFrame(
    {
        "Metadata_Gene": ["01", "02", "03, 04", "01"],
        "Metadata_Plate": ["a;b", "a", "c", "c"],
        "Cells_A": ["0.5", "1.25", "2", "-1e-3"],
    }
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.csv.gz", "t.txt.gz"])
def test_cells_are_told_apart_by_content(
    name: str, separator: str, encoding: str, tmp_path: Path
) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    text = (mark + TABLE.to_csv(index=False, sep=separator)).encode(encoding)
    file = tmp_path / name
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    pd.testing.assert_frame_equal(read_table(file), TABLE)
    screen = ingest_profiles(file, tmp_path / "s", quiet=True)
    assert screen.channels == ("Cells_A",)
    expected = np.array([0.5, 1.25, 2, -1e-3], dtype=np.float32)
    np.testing.assert_array_equal(screen.read(range(4))[:, 0], expected)


@pytest.mark.parametrize(
    ("name", "text", "separator"),
    [
        ("t.csv", "path\na;b\nc;d\n", ","),
        ("t.csv", "path\na.png\n", ","),
        ("t.csv", "Area; um2\n5\n6\n", ","),
        ("t.txt", "path\na,b\n", "\t"),
        ("t.csv", "id,genes\n1,A;B\n2,A;B\n", ","),
        ("t.csv", "a;b;c\nx;0,5;0,25\ny;1,5;2\n", ";"),
        ("t.csv", "a;b\n0,5;0,25\n1,5;2,5\n", ";"),
        ("t.csv", "Area, um2;Plate\n5;P1\n6;P2\n", ";"),
        ("t.csv", "Area, um2\tPlate\n1,5\tP1\n2,5\tP2\n", "\t"),
        ("t.tsv", "Area, um2\tPlate\n1,5\tP1\n2,5\tP2\n", "\t"),
        ("t.csv", "a;b\n1;2;\n3;4;\n", ";"),
        ("t.csv", "a,b,c\n1,2\n1,2,3\n", ","),
        ("t.tsv", "a,b\n\n1,2\n", ","),
        ("t.tsv", '"a\nb",c\n"1\n;",2\n', ","),
        ("t.csv", 'id,"genes; all"\n1,"A;B"\n2,"A;B"\n', ","),
        ("t.csv", 'id;"a,\tb"\n1;"2,\t3"\n', ";"),
        ("t.csv", "a;b\n", ";"),
        ("t.csv", "", ","),
    ],
)
def test_the_separator_divides_header_and_rows_alike(
    name: str, text: str, separator: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert separator_of(tmp_path / name) == separator


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Area, um2;Plate\n1,5;P1\n", "2 columns between commas and 2 between semicolons; put"),
        ("sep=;\na;b\n1;2\n", "begins with Excel's line 'sep=;'; delete this line"),
        ("a,b\n1,2\n".encode("utf-16-le"), "two bytes a letter without a mark; save it as UTF-8"),
        (b"a,b\n5 \xb5M,2\n", "save it as UTF-8"),
    ],
)
def test_what_cannot_be_told_is_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_table, lambda path: ingest_profiles(path, tmp_path / "s", quiet=True)):
        with pytest.raises(UserError, match=said) as error:
            read(file)
        assert str(error.value).startswith(str(file))


def test_decimal_commas_between_semicolons_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    table = TABLE.assign(Cells_A=["0,5", "-1,25e3", "2", " ,75"], Cells_B=["1.5", "2", "3", "4"])
    table["Cells_C"] = None
    table.to_csv(file, index=False, sep=";")
    screen = ingest_profiles(file, tmp_path / "s", quiet=True)
    expected = np.array([[0.5, 1.5], [-1250, 2], [2, 3], [0.75, 4]])
    np.testing.assert_array_equal(screen.read(range(4)), expected)
    assert screen.table["Metadata_Gene"].tolist() == TABLE["Metadata_Gene"].tolist()


@pytest.mark.parametrize(
    ("separator", "values", "said"),
    [
        (",", ["1", "0,5"], "row 1 .*'Cells_A': '0,5' is no number; write a decimal point"),
        ("\t", ["1", "1,234"], "row 1 .*'Cells_A': '1,234' is no number; write a decimal point"),
        (";", ["1.234", "0,5"], "row 1 .*'Cells_A': '0,5' is no number"),
        (";", ["1", "1,234,5"], "row 1 .*'Cells_A': '1,234,5' is no number; mend it"),
    ],
)
def test_other_commas_in_numbers_are_refused(
    separator: str, values: list[str], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.csv"
    TABLE[:2].assign(Cells_A=values).to_csv(file, index=False, sep=separator)
    with pytest.raises(UserError, match=said):
        ingest_profiles(file, tmp_path / "s", quiet=True)


def test_a_centre_with_a_decimal_comma_is_named() -> None:
    table = pd.DataFrame({"x": ["1.5", "2,5"]})
    with pytest.raises(UserError, match=r"row 1 .*'x' holds '2,5'; .*write a decimal point"):
        centres(table, ["x"], "t.csv")
