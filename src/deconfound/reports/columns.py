"""Columns of embeddings as a page holds them, to colour a map by."""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from deconfound.data.tables.table import coded

MOST_NAMES = 1_000
"""Different texts of a column at most; one with more names rows, not groups."""
FEW_NUMBERS = 12
"""Different whole numbers up to which a column is one of groups."""
BITS = 15
"""Binary digits of a number, whose first four decimal digits a page shows."""
MOST_BYTES = 6_000_000
"""Of all columns of a page, before they are compressed."""

Json = dict[str, Any]


class Chosen(NamedTuple):
    """Columns of one table, each by the number of its entry in the pool."""

    places: dict[str, int]
    """By name, in the order in which the page offers them."""
    left_out: list[str]
    """Columns that are not offered."""


class Pool:
    """Columns of all maps of a page; equal ones are held once."""

    def __init__(self) -> None:
        self.entries: list[Json] = []
        """`{"names": […], "codes": base64}` of groups, code −1 last; `{"values": base64}` of
        numbers, float32 of `BITS` binary digits, NaN where missing."""
        self.arrays: list[str] = []
        """Arrays as base64."""
        self._places: dict[str, int] = {}
        self._bytes = 0

    def hold(self, values: npt.NDArray[Any]) -> int:
        """The number of an array in `arrays`; equal ones are held once."""
        packed = base64_of(values)
        digest = hashlib.sha256(packed.encode()).hexdigest()
        if digest not in self._places:
            self._places[digest] = len(self.arrays)
            self.arrays.append(packed)
        return self._places[digest]

    def choose(self, columns: Iterable[tuple[str, pd.Series]]) -> Chosen:
        """Take in the columns, the first of a name; those that tell no rows apart are skipped."""
        places: dict[str, int] = {}
        left_out = []
        for name, values in columns:
            if name in places:
                continue
            entry, size = _entry(values)
            if entry is None:
                left_out += [name] * (size > 1)
                continue
            digest = hashlib.sha256(json.dumps(entry).encode()).hexdigest()
            if digest not in self._places:
                if self._bytes + size > MOST_BYTES:
                    left_out.append(name)
                    continue
                self._bytes += size
                self._places[digest] = len(self.entries)
                self.entries.append(entry)
            places[name] = self._places[digest]
        return Chosen(places, left_out)


def base64_of(values: npt.NDArray[Any]) -> str:
    """`values` (N,) as base64 of gzip: all their lowest bytes, then all second ones, and so on.

    Bytes of one place are alike, and pack smaller than whole numbers.
    """
    whole = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    places = whole.view(np.uint8).reshape(-1, whole.itemsize).T
    return base64.b64encode(gzip.compress(places.tobytes(), 6, mtime=0)).decode()


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest numbers of `BITS` binary digits: off by 1/32,768 of themselves at most."""
    fraction, exponent = np.frexp(values)
    kept = np.round(fraction * np.float32(2**BITS)) / np.float32(2**BITS)
    return np.asarray(np.ldexp(kept, exponent), dtype=np.float32)


def _entry(values: pd.Series) -> tuple[Json | None, int]:
    """A column and its bytes; None, and the number of its names, where it is not offered."""
    if _continuous(values):
        numbers = values.to_numpy(dtype=np.float32, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        if len(finite) < 1 or finite.min() == finite.max():
            return None, 1
        return {"values": base64_of(rounded(numbers))}, numbers.nbytes
    groups = coded(values.astype("string").replace("", pd.NA))
    names = [str(name) for name in groups.names]
    if not 1 < len(names) + bool((groups.codes < 0).any()) <= MOST_NAMES:
        return None, len(names)
    kind = np.uint8 if len(names) < 255 else np.uint16
    codes = np.where(groups.codes < 0, len(names), groups.codes).astype(kind)
    size = codes.nbytes + sum(map(len, names))
    return {"names": names, "codes": base64_of(codes), "wide": kind is np.uint16}, size


def _continuous(values: pd.Series) -> bool:
    """Whether these are numbers on a scale, and not groups named by numbers."""
    if is_bool_dtype(values.dtype) or not is_numeric_dtype(values.dtype):
        return False
    known = values.dropna()
    whole = bool((known == np.floor(known.astype(float))).all())
    return not (whole and known.nunique() <= FEW_NUMBERS)
