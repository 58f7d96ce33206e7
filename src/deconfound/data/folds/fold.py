"""Folds: what is held out, at random or one group at one level, without a leak.

Levels follow Pernice et al. (IST, section 5): a fold at a level leaves one group of it out; it is
of that level only if training keeps a sibling of the same parent, otherwise it tests more than
its name says.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Mask, Rows
from deconfound.data.tables.table import (
    Coded,
    Roles,
    joined,
    listed,
    natural_order,
    nested_ids,
    require_columns,
)
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

Part = Literal["train", "val", "ood_val", "id_test", "test", "unused"]
PARTS: tuple[Part, ...] = ("train", "val", "ood_val", "id_test", "test", "unused")
Unit = Literal["cell", "well"]


@dataclass(frozen=True)
class Fold:
    """The part every row of a table plays."""

    name: str
    """"iid", "given" or "COLUMN=GROUP", with " without ENVIRONMENT" where one is left out."""
    part: npt.NDArray[np.str_]
    """(N,) of `PARTS`: train; val (in-distribution, for selection); ood_val (a training environment
    left out, for selection); id_test (in-distribution); test (held out); unused (would leak, or
    left out by a given split)."""

    def rows(self, part: Part) -> Rows:
        """Row numbers of one part, ascending."""
        return np.flatnonzero(self.part == part).astype(np.int64)

    def counts(self) -> dict[str, int]:
        """Rows in each part."""
        return {part: int((self.part == part).sum()) for part in PARTS}


@dataclass(frozen=True)
class Group:
    """One group that could be held out."""

    column: str
    identity: str
    """Globally unique id, made by prefixing the parents: "S1/P2"."""
    refused: str | None
    """Why holding it out would not be a fold of this level; None where it is one."""

    @property
    def fold(self) -> str:
        """The fold's name, as `make_fold` takes it."""
        return f"{self.column}={self.identity}"


def make_fold(
    table: pd.DataFrame,
    roles: Roles,
    name: str,
    *,
    val_fraction: float = 0.1,
    id_test_fraction: float = 0.1,
    unit: Unit = "cell",
    seed: int = 0,
) -> Fold:
    """Build the fold `name`: "iid", "given" (the table's split column) or "COLUMN=GROUP".

    In an "iid" fold `id_test_fraction` of the rows are the test; in a "COLUMN=GROUP" fold all rows
    of the group are the test and `val_fraction` and `id_test_fraction` of the others are val and
    id_test, drawn within each label × environment. `unit` "well" draws whole wells instead. Nothing
    but the metadata of rows outside the test decides who is val. Raises UserError for an unknown
    fold or one that is not of its level.
    """
    require_columns(table, roles.columns(), "table")
    if name == "given":
        return _given(table, roles)
    if name == "iid":
        kept = np.ones(len(table), dtype=bool)
        part = _random_parts(table, roles, kept, ("test", "val"), (id_test_fraction, val_fraction),
                             unit, seed)  # fmt: skip
        return Fold(name, part)
    column, found, identity = name.partition("=")
    if not found or column not in roles.levels:
        raise UserError(
            f"fold {name!r}: expected iid, given or COLUMN=GROUP with one of the levels "
            f"{', '.join(roles.levels) or '(this screen has none: pass --levels)'}"
        )
    group = _find_group(table, roles, column, identity)
    held_out, leaking = separated(table, roles, group)
    part = _random_parts(
        table, roles, ~held_out & ~leaking, ("id_test", "val"), (id_test_fraction, val_fraction),
        unit, seed,
    )  # fmt: skip
    part[held_out] = "test"
    return Fold(name, part)


def without_environment(table: pd.DataFrame, roles: Roles, fold: Fold, name: str) -> Fold:
    """`fold` with the training environment `name` left out as well: its rows become ood_val.

    Rows for training that share a physical well with it, or have no environment and so may be of
    it, become unused; test stays as it is. Raises UserError if training has no such environment.
    """
    environment = joined(table, roles.environment)
    known = sorted(environment[fold.part == "train"].dropna().unique(), key=natural_order)
    if name not in known:
        raise UserError(
            f"fold {fold.name} without {name!r}: no such training environment; there are "
            f"{listed(known)}"
        )
    used = np.isin(fold.part, ("train", "val", "id_test"))
    left_out = used & np.asarray((environment == name).fillna(False), dtype=bool)
    leaking = np.asarray(environment.isna(), dtype=bool)
    if roles.well is not None:
        well = physical_well(table, roles)
        leaking |= np.asarray(well.isin(well[left_out].dropna().unique()), dtype=bool)
    part = fold.part.copy()
    part[used & leaking] = "unused"
    part[left_out] = "ood_val"
    return Fold(f"{fold.name} without {name}", part)


def groups(table: pd.DataFrame, roles: Roles, column: str) -> list[Group]:
    """Every group of a level, in natural order, each with the reason why it cannot be a fold.

    Raises UserError if `column` is not one of the levels or the levels are not nested.
    """
    if column not in roles.levels:
        raise UserError(f"{column!r} is not a level; the levels are {', '.join(roles.levels)}")
    depth = roles.levels.index(column)
    identities = nested_ids(table, roles.levels)
    own = identities[column]
    ids = sorted(own.dropna().unique(), key=natural_order)
    if depth == 0:
        alone = "it is the only group of its level, nothing is left to train on"
        return [Group(column, i, alone if len(ids) == 1 else None) for i in ids]
    parent = identities[roles.levels[depth - 1]]
    found = []
    for identity in ids:
        held_out = np.asarray((own == identity).fillna(False), dtype=bool)
        leaking = _leaking(table, roles, held_out, column)
        siblings = np.asarray((parent == parent[held_out].iloc[0]) & own.notna(), dtype=bool)
        reason = None
        if not (siblings & ~held_out).any():
            reason = f"{parent[held_out].iloc[0]} has no other group of {column} to train on"
        elif not (siblings & ~held_out & ~leaking).any():
            reason = "every sibling shares its wells"
        found.append(Group(column, identity, reason))
    return found


def separated(table: pd.DataFrame, roles: Roles, group: Group) -> tuple[Mask, Mask]:
    """Rows that holding a group out tests, and rows outside it that would leak: (N,) bool each."""
    own = nested_ids(table, roles.levels)[group.column]
    held_out = np.asarray((own == group.identity).fillna(False), dtype=bool)
    return held_out, _leaking(table, roles, held_out, group.column)


def physical_well(table: pd.DataFrame, roles: Roles) -> pd.Series:
    """Ids of wells: prefixed by the levels down to the plate, or by all where none is a plate.

    The roles must name a well.
    """
    assert roles.well is not None
    levels = [level for level in roles.levels if level != roles.well]
    plates = [depth for depth, level in enumerate(levels) if "plate" in level.lower()]
    return joined(table, [*levels[: plates[0] + 1 if plates else len(levels)], roles.well])


def shared_labels(label: Coded, fold: Fold, part: Part) -> Rows:
    """Codes of the labels present both in training and in `part`, ascending."""
    train = np.unique(label.codes[fold.rows("train")])
    other = np.unique(label.codes[fold.rows(part)])
    both = np.intersect1d(train, other)
    return both[both >= 0]


def _find_group(table: pd.DataFrame, roles: Roles, column: str, identity: str) -> Group:
    known = groups(table, roles, column)
    for group in known:
        if group.identity == identity:
            if group.refused:
                raise UserError(f"fold {group.fold}: {group.refused}; hold out a coarser level")
            return group
    names = ", ".join(group.identity for group in known[:12])
    raise UserError(f"fold {column}={identity}: no such group; {column} has {names}")


def _leaking(
    table: pd.DataFrame, roles: Roles, held_out: npt.NDArray[np.bool_], column: str
) -> npt.NDArray[np.bool_]:
    """Rows outside a group that would leak: of a well inside it, or perhaps of it.

    A row is perhaps of the group if every level down to `column` is missing or the group's.
    """
    perhaps = np.ones(len(table), dtype=bool)
    for level in roles.levels[: roles.levels.index(column) + 1]:
        values = table[level].astype("string")
        perhaps &= np.asarray(values.isna() | (values == values[held_out].iloc[0]), dtype=bool)
    if roles.well is not None:
        well = physical_well(table, roles)
        perhaps |= np.asarray(well.isin(well[held_out].dropna().unique()), dtype=bool)
    return perhaps & ~held_out


def _random_parts(
    table: pd.DataFrame,
    roles: Roles,
    kept: npt.NDArray[np.bool_],
    parts: tuple[Part, Part],
    fractions: tuple[float, float],
    unit: Unit,
    seed: int,
) -> npt.NDArray[np.str_]:
    part = np.full(len(table), "unused", dtype="U7")
    rows = np.flatnonzero(kept)
    strata_columns = [c for c in (roles.label, *roles.environment) if c is not None]
    if unit == "well":
        if roles.well is None:
            raise UserError("iid unit 'well': the screen has no well column; name it with --well")
        well = physical_well(table, roles).iloc[rows]
        owner = _codes(well)
        members = pd.Series(np.arange(len(rows))).groupby(owner).first().to_numpy()
    else:
        owner = np.arange(len(rows))
        members = owner
    drawn = rows[members]
    if strata_columns:
        stratum = _codes(joined(table.iloc[drawn], strata_columns))
    else:
        stratum = np.zeros(len(drawn), dtype=np.int64)
    fewest = max([1.0, *(1 / fraction for fraction in fractions if fraction > 0)])
    place = _place_in_stratum(stratum, seed, fewest)
    choice = np.full(len(drawn), "train", dtype="U7")
    choice[place < fractions[0] + fractions[1]] = parts[1]
    choice[place < fractions[0]] = parts[0]
    part[rows] = choice[np.searchsorted(np.unique(owner), owner)]
    return part


def _codes(text: pd.Series) -> Rows:
    return np.asarray(text.fillna("").astype("category").cat.codes, dtype=np.int64)


def _place_in_stratum(stratum: Rows, seed: int, fewest: float) -> npt.NDArray[np.float64]:
    """A random place in (0, 1) within its stratum for every member, evenly spaced.

    The first place of a stratum of 3 to `fewest` is random too: with one fixed, all strata of a
    size would give a row to the same part, and those of a gene in the wells of a pooled screen have
    one size. Smaller ones stay in training. Places depend on no row of another stratum.
    """
    stream = numpy_stream(seed, "split")
    keys, phases = stream.random(len(stratum)), stream.random(len(stratum))
    order = np.lexsort((keys, stratum))
    size = np.bincount(stratum, minlength=1)
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    ranked = stratum[order]
    thin = (size[ranked] > 2) & (size[ranked] < fewest)
    first = np.where(thin, phases[order[start[ranked]]], 0.5)
    place = np.empty(len(stratum))
    place[order] = (np.arange(len(stratum)) - start[ranked] + first) / size[ranked]
    return place


def _given(table: pd.DataFrame, roles: Roles) -> Fold:
    if roles.split is None:
        raise UserError("fold 'given': the screen has no split column; name one with --split")
    values = table[roles.split].astype("string").fillna("unused")
    wrong = sorted(set(values.unique()) - set(PARTS))
    if wrong:
        raise UserError(
            f"column {roles.split!r}: value {wrong[0]!r}; expected {', '.join(PARTS)} or empty"
        )
    return Fold("given", values.to_numpy(dtype="U7"))
