"""The groups of a level: which can be held out alone, and which rows would leak from them.

Levels follow Pernice et al. (IST, section 5): a fold at a level leaves one group of it out; it is
of that level only if training keeps a sibling of the same parent, otherwise it tests more than
its name says.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from deconfound.arrays import Codes, Mask, Rows
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import Roles, coded, joined, joined_as_written, natural_order
from deconfound.errors import UserError


@dataclass(frozen=True)
class Group:
    """One group of a level, such as one plate."""

    column: str
    identity: str
    """Globally unique id, made by prefixing the parents: "S1/P2"."""
    refused: str | None
    """Why holding it out would not be a fold of this level; None where it is one."""

    @property
    def fold(self) -> str:
        """The fold's name, as `make_fold` takes it."""
        return f"{self.column}={self.identity}"


class Level:
    """One level of a table as integer codes, made once for all of its groups.

    Raises UserError if `column` is not one of the levels.
    """

    def __init__(self, table: pd.DataFrame, roles: Roles, column: str) -> None:
        if column not in roles.levels:
            raise UserError(f"{column!r} is not a level; the levels are {', '.join(roles.levels)}")
        columns = roles.levels[: roles.levels.index(column) + 1]
        identities = joined(table, columns)
        names = sorted(identities.dropna().unique().tolist(), key=natural_order)
        self._own = coded(identities, names).codes
        self._columns = [_numbered(keys(table[one]))[0] for one in columns]
        self._well = np.full(len(table), -1)
        if roles.well is not None:
            self._well = _numbered(physical_well(table, roles))[0]
        alone = "it is the only group of its level, nothing is left to train on"
        reasons: list[str | None] = [alone if len(names) == 1 else None] * len(names)
        if len(columns) > 1:
            reasons = self._refusals(column, joined(table, columns[:-1]))
        self.groups = tuple(map(Group, [column] * len(names), names, reasons))
        """Every group, in natural order."""

    def separated(self, group: Group) -> tuple[Mask, Mask]:
        """Rows that holding `group` out tests, and rows outside it that would leak: (N,) bool each.

        A row leaks if its well has a row in the group, or if it may itself be of the group: if each
        column down to the level's is missing or the group's.
        """
        held_out = self._own == self.groups.index(group)
        first = int(np.argmax(held_out))
        leaking = np.ones(len(held_out), dtype=bool)
        for codes in self._columns:
            leaking &= (codes < 0) | (codes == codes[first])
        wells = self._well[held_out]
        leaking |= np.isin(self._well, wells[wells >= 0])
        return held_out, leaking & ~held_out

    def _refusals(self, column: str, parents: pd.Series) -> list[str | None]:
        """Why each group of an inner level cannot be held out.

        A sibling's row can be trained on if it has no well, or a well that has no row in the group:
        if the parent has more of them than the group.
        """
        parent, names = _numbered(parents)
        rows = pd.DataFrame({"group": self._own, "parent": parent, "well": self._well})
        rows["well"] = rows["well"].where(rows["well"] >= 0)
        rows["without"] = rows["well"].isna()
        rows = rows[rows["group"] >= 0]
        counted = {"wells": ("well", "nunique"), "without": ("without", "sum")}
        inside = rows.groupby(["group", "parent"], as_index=False).agg(**counted)
        around = rows.groupby("parent").agg(groups=("group", "nunique"), **counted)
        around = around.loc[inside["parent"]].reset_index(drop=True)
        more = (around["wells"] > inside["wells"]) | (around["without"] > inside["without"])
        reasons: list[str | None] = []
        for place, alone, trainable in zip(
            inside["parent"], around["groups"] == 1, more, strict=True
        ):
            reason = None if trainable else "every sibling shares its wells"
            if alone:
                reason = f"{names[place]} has no other group of {column} to train on"
            reasons.append(reason)
        return reasons


def groups(table: pd.DataFrame, roles: Roles, column: str) -> list[Group]:
    """Every group of a level, in natural order, each with the reason why it cannot be a fold.

    Raises UserError if `column` is not one of the levels.
    """
    return list(Level(table, roles, column).groups)


def physical_well(table: pd.DataFrame, roles: Roles) -> pd.Series:
    """Ids of wells: prefixed by the levels down to the plate, or by all where none is a plate.

    The roles must name a well.
    """
    assert roles.well is not None
    return joined(table, down_to_well(roles))


def well_units(table: pd.DataFrame, roles: Roles) -> Rows:
    """(N,) codes of physical wells, a row without a well being one of its own.

    Wells are numbered in the order in which the table writes them. The roles must name a well.
    """
    well = physical_well(table, roles)
    ways = pd.DataFrame({"well": well, "as": joined_as_written(table, down_to_well(roles))})
    first = ways.dropna().drop_duplicates().groupby("well")["as"].min().sort_values()
    found = well.map(pd.Series(np.arange(len(first)), index=first.index))
    alone = found.isna().to_numpy(dtype=bool)
    units = found.fillna(0).to_numpy(dtype=np.int64, copy=True)
    units[alone] = len(first) + np.arange(alone.sum())
    return units


def down_to_well(roles: Roles) -> list[str]:
    """Columns that tell wells apart: the levels down to the plate, or all, and the well last.

    The roles must name a well.
    """
    levels = [level for level in roles.levels if level != roles.well]
    plates = [depth for depth, level in enumerate(levels) if "plate" in level.lower()]
    return [*levels[: plates[0] + 1 if plates else len(levels)], str(roles.well)]


def _numbered(values: pd.Series) -> tuple[Codes, pd.Index]:
    """Codes of a column, −1 where a value is missing, and the text that each code stands for."""
    codes, names = pd.factorize(values.astype("string"))
    return codes.astype(np.int64), pd.Index(names)
