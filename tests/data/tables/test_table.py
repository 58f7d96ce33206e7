import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconfound.data.tables.keys import key
from deconfound.data.tables.table import (
    Roles,
    coded,
    joined,
    nested_ids,
    read_table,
    require_columns,
)
from deconfound.errors import UserError

NAMES = st.text(alphabet="ab01_ -é/%", min_size=1, max_size=4)


def test_text_stays_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Metadata_Plate,Metadata_Well\n01,A1\n1,\n")
    table = read_table(tmp_path / "t.csv")
    assert table["Metadata_Plate"].tolist() == ["01", "1"]
    assert table["Metadata_Well"].isna().tolist() == [False, True]


def test_three_formats_agree(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": ["x", "y"], "b": ["1", "2"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "t.parquet")
    for suffix in ("csv", "tsv", "parquet"):
        pd.testing.assert_frame_equal(read_table(tmp_path / f"t.{suffix}"), table)


def test_index_of_a_parquet_table_does_not_shift_rows(tmp_path: Path) -> None:
    pd.DataFrame({"a": ["x", "y"]}, index=[7, 3]).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such table"),
        ("t.xlsx", b"x", "expected .csv, .tsv, .txt or .parquet"),
        ("t.csv", b"", "cannot be read as a table"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a\n\xff\xfe\n", "cannot be read as a table"),
        ("t.csv", b'a,b\n1,2\n"3,4\n5,6,7,8\n', "cannot be read as a table"),
        ("t.parquet", b"PAR1 and then nothing", "cannot be read as a table"),
    ],
)
def test_unreadable_tables(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_table(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_column_names_the_nearest() -> None:
    table = pd.DataFrame({"Metadata_Plate": ["a"]})
    with pytest.raises(UserError, match="'Metadata_Plat'; did you mean 'Metadata_Plate'"):
        require_columns(table, ["Metadata_Plat"], "t.csv")
    with pytest.raises(UserError, match="it has Metadata_Plate"):
        require_columns(table, ["qqq"], "t.csv")


def test_roles_name_each_column_once() -> None:
    roles = Roles(label="y", environment=("p", "s"), levels=("p", "s", "w"), well="w")
    assert roles.columns() == ("y", "p", "s", "w")


def test_joined_is_missing_where_any_part_is() -> None:
    table = pd.DataFrame({"a": ["1", None, "2"], "b": ["x", "y", None]})
    text = joined(table, ["a", "b"])
    assert text[0] == "1/x"
    assert text.isna().tolist() == [False, True, True]


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=30))
def test_nested_ids_are_equal_exactly_where_all_parents_are(rows: list[tuple[str, ...]]) -> None:
    levels = ["series", "plate", "section"]
    table = pd.DataFrame(rows, columns=levels)
    ids = nested_ids(table, levels)
    for depth, level in enumerate(levels):
        truth = [tuple(map(key, row[: depth + 1])) for row in rows]
        known = [place for place, parents in enumerate(truth) if all(parents)]
        assert np.flatnonzero(ids[level].notna()).tolist() == known
        pairs = {(ids[level][place], truth[place]) for place in known}
        assert len(pairs) == len({truth[place] for place in known}) == ids[level].nunique()


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), NAMES), max_size=30))
def test_codes_and_names_give_the_values_back(values: list[str | None]) -> None:
    codes, names = coded(pd.Series(values, dtype="object"))
    assert codes.dtype == np.int64
    written = [None if value is None else key(value) or None for value in values]
    assert [None if code < 0 else names[code] for code in codes] == written
    assert len(set(names)) == len(names)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=20))
def test_codes_by_given_names_do_not_depend_on_the_rows(values: list[str]) -> None:
    names = coded(pd.Series(values)).names
    part = pd.Series([*values[: len(values) // 2], "never seen"])
    codes = coded(part, names).codes
    assert codes[-1] == -1
    read = [names[code] if code >= 0 else "" for code in codes[:-1]]
    assert read == [key(value) for value in part[:-1]]


def test_names_sort_as_people_count() -> None:
    assert coded(pd.Series(["week10", "week2", "DMSO"])).names == ("DMSO", "week2", "week10")


def test_missing_codes_survive_parquet() -> None:
    stored = io.BytesIO()
    pd.DataFrame({"e": ["0", None, "1"]}).to_parquet(stored)
    assert coded(pd.read_parquet(stored)["e"]).codes.tolist() == [0, -1, 1]


def test_row_longer_than_the_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\nX,1,2\n")
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_table(file)


def test_repeated_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,a\n1,2\n")
    with pytest.raises(UserError, match="column 'a' appears twice"):
        read_table(file)


def test_no_columns_join_to_no_value() -> None:
    found = joined(pd.DataFrame({"a": ["x", "y"]}, index=[3, 4]), [])
    assert found.index.tolist() == [3, 4]
    assert found.isna().all()
