"""Folds: what is held out, at random or one group at one level, without a leak."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Mask, Rows
from deconfound.data.folds.groups import Group, Level, physical_well, well_units
from deconfound.data.tables.identifiers import order_of_rows
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import (
    Coded,
    Roles,
    joined,
    joined_key,
    listed,
    natural_order,
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
    """(N,) one of `PARTS` for each row: train; val (in-distribution, for selection); ood_val (a
    training environment left out, for selection); id_test (in-distribution); test (held out);
    unused (would leak, or left out by a given split)."""
    order: Rows | None = None
    """(N,) the rows in the order of their identifier, in which training takes them; None where the
    table's own order counts."""

    def rows(self, part: Part) -> Rows:
        """Row numbers of one part, in the order of their identifier, or else ascending."""
        if self.order is None:
            return np.flatnonzero(self.part == part).astype(np.int64)
        return np.asarray(self.order[self.part[self.order] == part])

    def digest(self) -> str:
        """The SHA-256 of the part of every row."""
        codes = sum(number * (self.part == part) for number, part in enumerate(PARTS))
        return hashlib.sha256(np.asarray(codes, dtype=np.uint8).tobytes()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Rows in each part."""
        return {part: int((self.part == part).sum()) for part in PARTS}


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
    id_test, drawn within each label × environment. `unit` "well" draws whole wells instead of rows.
    Nothing but the metadata of rows outside the test decides who is val. With an identifier the
    same rows in another order have the same parts. Raises UserError for an unknown fold or one that
    is not of its level.
    """
    require_columns(table, roles.columns(), "table")
    name = fold_key(name, roles)
    order = order_of_rows(table, roles)
    drawn: dict[Part, float] = {"id_test": id_test_fraction, "val": val_fraction}
    if order is None:
        return Fold(name, _parts(table, roles, name, drawn, unit, seed))
    ordered = table.iloc[order].reset_index(drop=True)
    part = _parts(ordered, roles, name, drawn, unit, seed)
    return Fold(name, part[np.argsort(order)], order)


def fold_key(name: str, roles: Roles) -> str:
    """The name by which a fold is known, in whatever way its group is written: "Plate=1.0" is
    "Plate=1"."""
    column, found, identity = name.partition("=")
    if not found or column not in roles.levels:
        return name
    return f"{column}={joined_key(identity, roles.levels[: roles.levels.index(column) + 1])}"


def _parts(
    table: pd.DataFrame,
    roles: Roles,
    name: str,
    drawn: dict[Part, float],
    unit: Unit,
    seed: int,
) -> npt.NDArray[np.str_]:
    """The part of every row of a table whose rows are in the order that counts."""
    if name == "given":
        return _given(table, roles)
    if name == "iid":
        kept = np.ones(len(table), dtype=bool)
        fractions: dict[Part, float] = {"test": drawn["id_test"], "val": drawn["val"]}
        return _random_parts(table, roles, kept, fractions=fractions, unit=unit, seed=seed)
    column, found, _ = name.partition("=")
    if not found or column not in roles.levels:
        raise UserError(
            f"fold {name!r}: expected iid, given or COLUMN=GROUP with one of the levels "
            f"{', '.join(roles.levels) or '(this screen has none: pass --levels)'}"
        )
    level = Level(table, roles, column)
    group = _group(level, name)
    if group.refused:
        coarser = (
            "hold out a coarser level"
            if column != roles.levels[0]
            else ("hold out a group of another level, or pass --fold iid")
        )
        raise UserError(f"fold {name}: {group.refused}; {coarser}")
    held_out, leaking = level.separated(group)
    kept = ~held_out & ~leaking
    part = _random_parts(table, roles, kept, fractions=drawn, unit=unit, seed=seed)
    part[held_out] = "test"
    return part


def _group(level: Level, name: str) -> Group:
    """The group of a level that a `fold_key` "COLUMN=GROUP" names; raises UserError if none is."""
    column, _, identity = name.partition("=")
    group = next((group for group in level.groups if group.identity == identity), None)
    if group is None:
        names = ", ".join(group.identity for group in level.groups[:12])
        raise UserError(f"fold {name}: no such group; {column} has {names}")
    return group


def without_environment(table: pd.DataFrame, roles: Roles, fold: Fold, name: str) -> Fold:
    """`fold` with the training environment `name` left out as well: its rows become ood_val.

    Or, named COLUMN=GROUP, a group of a level. Rows for training that share a physical well with
    it, or have no environment and so may be of it, become unused; test stays as it is. Raises
    UserError if training has no such environment or group.
    """
    column, found, _ = name.partition("=")
    if found and column in roles.levels:
        return _without_group(table, roles, fold, name)
    environment = joined(table, roles.environment)
    name = joined_key(name, roles.environment)
    known = sorted(environment[fold.part == "train"].dropna().unique(), key=natural_order)
    if name not in known:
        raise UserError(
            f"fold {fold.name} without {name!r}: no such training environment; there are "
            f"{listed(known)}"
        )
    used = np.isin(fold.part, ("train", "val", "id_test"))
    left_out = used & np.asarray((environment == name).fillna(False), dtype=bool)
    leaking = np.array(environment.isna(), dtype=bool)
    if roles.well is not None:
        well = physical_well(table, roles)
        leaking |= np.asarray(well.isin(well[left_out].dropna().unique()), dtype=bool)
    return _without(fold, name, left_out, leaking)


def _without_group(table: pd.DataFrame, roles: Roles, fold: Fold, name: str) -> Fold:
    name = fold_key(name, roles)
    level = Level(table, roles, name.partition("=")[0])
    left_out, leaking = level.separated(_group(level, name))
    if not (left_out & (fold.part == "train")).any():
        raise UserError(f"fold {fold.name} without {name!r}: training has no row of that group")
    return _without(fold, name, left_out, leaking)


def _without(fold: Fold, name: str, left_out: Mask, leaking: Mask) -> Fold:
    """`fold` whose rows for training become ood_val where `left_out`, else unused if `leaking`."""
    used = np.isin(fold.part, ("train", "val", "id_test"))
    part = fold.part.copy()
    part[used & leaking] = "unused"
    part[used & left_out] = "ood_val"
    return Fold(f"{fold.name} without {name}", part, fold.order)


def shared_labels(label: Coded, fold: Fold, part: Part) -> Rows:
    """Codes of the labels present both in training and in `part`, ascending."""
    train = np.unique(label.codes[fold.rows("train")])
    other = np.unique(label.codes[fold.rows(part)])
    both = np.intersect1d(train, other)
    return both[both >= 0]


def _random_parts(
    table: pd.DataFrame,
    roles: Roles,
    kept: Mask,
    *,
    fractions: dict[Part, float],
    unit: Unit,
    seed: int,
) -> npt.NDArray[np.str_]:
    """The part of every row: of the rows `kept`, each part in `fractions` gets its fraction and
    train the rest; other rows are unused."""
    part = np.full(len(table), "unused", dtype="U7")
    rows = np.flatnonzero(kept)
    strata_columns = [c for c in (roles.label, *roles.environment) if c is not None]
    if unit == "well":
        if roles.well is None:
            raise UserError("iid unit 'well': the screen has no well column; name it with --well")
        owner = well_units(table.iloc[rows], roles)
        members = pd.Series(np.arange(len(rows))).groupby(owner).first().to_numpy()
    else:
        owner = np.arange(len(rows))
        members = owner
    drawn = rows[members]
    if strata_columns:
        stratum = _codes(joined(table.iloc[drawn], strata_columns))
    else:
        stratum = np.zeros(len(drawn), dtype=np.int64)
    (first, first_fraction), (second, second_fraction) = fractions.items()
    fewest = max([1.0, *(1 / fraction for fraction in fractions.values() if fraction > 0)])
    place = _place_in_stratum(stratum, seed, fewest)
    choice = np.full(len(drawn), "train", dtype="U7")
    choice[place < first_fraction + second_fraction] = second
    choice[place < first_fraction] = first
    part[rows] = choice[np.searchsorted(np.unique(owner), owner)]
    return part


def _codes(text: pd.Series) -> Rows:
    return np.asarray(text.fillna("").astype("category").cat.codes, dtype=np.int64)


def _place_in_stratum(stratum: Rows, seed: int, fewest: float) -> npt.NDArray[np.float64]:
    """A random place in (0, 1) within its stratum for every member, evenly spaced.

    Small strata (3 to `fewest` rows) start at a random offset; otherwise every stratum of one size
    would send its rows to the same part, and the cells of one gene in one well of a pooled screen
    all number the same. Smaller strata stay in training. A place depends on no other stratum.
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


def _given(table: pd.DataFrame, roles: Roles) -> npt.NDArray[np.str_]:
    if roles.split is None:
        raise UserError("fold 'given': the screen has no split column; name one with --split")
    values = keys(table[roles.split]).fillna("unused")
    wrong = sorted(set(values.unique()) - set(PARTS))
    if wrong:
        raise UserError(
            f"column {roles.split!r}: value {wrong[0]!r}; expected {', '.join(PARTS)} or empty"
        )
    return values.to_numpy(dtype="U7")
