"""Checks that groups lie within groups, as the plan of an experiment requires."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deconfound.data.tables.table import joined, listed
from deconfound.errors import UserError


def refuse_divided(
    table: pd.DataFrame, inner: Sequence[str], outer: Sequence[str], where: str
) -> None:
    """Raise UserError naming the first group of `inner` whose rows lie in two of `outer`.

    A group is one value of the columns, joined; a row where one of them is missing has no group.
    """
    inside, around = joined(table, inner), joined(table, outer)
    known = np.flatnonzero(inside.notna() & around.notna())
    inside, around = inside.iloc[known], around.iloc[known]
    first = around.groupby(inside, sort=False).transform("first")
    divided = np.flatnonzero(around != first)
    if not len(divided):
        return
    place = int(divided[0])
    start = int(np.flatnonzero(inside == inside.iloc[place])[0])
    raise UserError(
        f"{where}: {_named(inner)} {inside.iloc[place]!r} is of {_named(outer)} "
        f"{around.iloc[start]!r} in row {known[start]} and of {around.iloc[place]!r} in row "
        f"{known[place]} (from 0); expected each within one, correct the table or give them "
        "different names"
    )


def _named(columns: Sequence[str]) -> str:
    return listed(column.removeprefix("Metadata_").lower() for column in columns)
