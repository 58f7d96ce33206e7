"""Columns that count or measure by their names, such as sites and doses, as numbers."""

import re
from collections.abc import Collection

import pandas as pd

from deconfound.data.tables.keys import keys

_COUNTED = re.compile(
    r"(^|_)(site|field|fov|timepoint|dose|conc(entration)?|(object|image|table)_?number"
    r"|(object|cell|site|guide)_?count|mmoles_per_liter|[xyz])(_[pnuµm]?M)?$",
    re.IGNORECASE,
)
"""Names of sites, numbers of objects and images, doses, counts and coordinates."""


def numbered(table: pd.DataFrame, but: Collection[str] = ()) -> pd.DataFrame:
    """`table` with text columns of sites, object and image numbers, doses, counts and coordinates
    as int64, or as float64 where a value is missing or no whole number.

    Such a column is told by its name. It stays text if a value is no number, if two different texts
    are one number, or if it is one of `but`. The other columns are not copied.
    """
    found = {}
    for column in table.columns:
        if column in but or not _COUNTED.search(str(column)):
            continue
        if pd.api.types.is_numeric_dtype(table[column].dtype):
            continue
        text = keys(table[column])
        number = pd.to_numeric(text.astype(object), errors="coerce")
        known = text.notna()
        if known.any() and number[known].notna().all() and number.nunique() == text.nunique():
            found[column] = number
    return table.assign(**found) if found else table
