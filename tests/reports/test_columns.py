"""Columns that a map is coloured by: groups, numbers, and what is not offered."""

import base64

import numpy as np
import pandas as pd

from deconfound.reports import columns
from deconfound.reports.columns import Pool


def read(text: str, kind: str) -> list[float]:
    found: list[float] = np.frombuffer(base64.b64decode(text), dtype=kind).tolist()
    return found


def test_numbers_are_a_scale_and_few_whole_numbers_are_groups() -> None:
    pool = Pool()
    area = pd.Series([1.5, np.nan, 3.25, 0.5])
    chosen = pool.choose({"area": area, "dose": pd.Series([0, 10, 0, 2])}.items())
    assert chosen.left_out == []
    np.testing.assert_array_equal(
        read(pool.entries[chosen.places["area"]]["values"], "<f4"), area.astype("float32")
    )
    dose = pool.entries[chosen.places["dose"]]
    assert dose["names"] == ["0", "2", "10"]
    assert read(dose["codes"], "u1") == [0, 2, 0, 1]


def test_missing_values_have_the_code_after_the_last() -> None:
    pool = Pool()
    chosen = pool.choose([("well", pd.Series(["A1", None, "", "A2"]))])
    assert read(pool.entries[chosen.places["well"]]["codes"], "u1") == [0, 2, 2, 1]


def test_equal_columns_are_held_once_and_constant_ones_never() -> None:
    pool = Pool()
    plate = pd.Series(["p1", "p2", "p1"])
    first = pool.choose({"plate": plate, "screen": pd.Series(["s"] * 3)}.items())
    again = pool.choose({"Environment": plate, "flag": pd.Series([True, False, True])}.items())
    assert set(first.places) == {"plate"}
    assert again.places["Environment"] == first.places["plate"]
    assert pool.entries[again.places["flag"]]["names"] == ["False", "True"]
    assert len(pool.entries) == 2


def test_columns_of_too_many_names_or_bytes_are_left_out() -> None:
    names = pd.Series([f"cell-{i}" for i in range(columns.MOST_NAMES + 1)])
    wide = pd.Series([f"well-{i % 300}" for i in range(len(names))])
    pool = Pool()
    chosen = pool.choose({"path": names, "well": wide}.items())
    assert chosen.left_out == ["path"]
    entry = pool.entries[chosen.places["well"]]
    assert entry["wide"]
    assert [entry["names"][int(code)] for code in read(entry["codes"], "<u2")] == wide.tolist()
    half = columns.MOST_BYTES // 8 - 100
    numbers = np.random.default_rng(0).random((3, half))
    chosen = Pool().choose((f"f{i}", pd.Series(values)) for i, values in enumerate(numbers))
    assert (set(chosen.places), chosen.left_out) == ({"f0", "f1"}, ["f2"])
