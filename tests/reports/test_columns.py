"""Columns that a map is coloured by: groups, numbers, and what is not offered."""

import base64
import gzip

import numpy as np
import pandas as pd

from deconfound.reports import columns
from deconfound.reports.columns import Pool


def read(text: str, kind: str) -> list[float]:
    places = np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=np.uint8)
    together = np.ascontiguousarray(places.reshape(np.dtype(kind).itemsize, -1).T)
    found: list[float] = together.view(kind)[:, 0].tolist()
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


def test_bytes_of_one_place_lie_together() -> None:
    packed = columns.base64_of(np.array([0x0102, 0x0304, 0x0506], np.uint16))
    assert gzip.decompress(base64.b64decode(packed)) == bytes([2, 4, 6, 1, 3, 5])


def test_numbers_are_right_to_a_32768th_of_themselves_at_any_scale() -> None:
    stream = np.random.default_rng(0)
    values = (stream.standard_normal(9_999) * 10.0 ** stream.integers(-30, 30, 9_999)).astype("f4")
    kept = columns.rounded(values)
    assert (np.abs(kept.astype(float) - values) <= np.abs(values.astype(float)) / 32_768).all()
    assert not (kept.view(np.uint32) & 0xFF).any(), "the lowest bytes are 0 and pack to nothing"
    whole = np.array([0, 1, 379, 32_767, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(columns.rounded(whole), whole)


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
