"""What an experiment holds out of a screen: levels, their groups, and what each fold poses."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.arrays import Rows
from deconfound.config import DataOptions, did_you_mean
from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.groups import Group, groups
from deconfound.data.folds.problem import pose, roles_of
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.layout import PLATE
from deconfound.data.tables.table import joined, listed
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.positives import label_rows

ALL_GROUPS = "all groups of "
COLUMNS = ["level", "fold", "rows", "held_out", "reason"]


@dataclass(frozen=True)
class Posed:
    """What one fold of a screen poses."""

    environments: tuple[str, ...]
    """Names of the training environments."""
    test_rows: int
    label_rows: Rows
    """(L,) training rows of each label."""
    train_rows: int


class Folds:
    """Folds of screens, each posed once, however many runs share it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, DataOptions], Posed] = {}

    def pose(self, screen: Screen, options: DataOptions) -> Posed:
        """The fold that `options` name; raises UserError as `problem.pose` does."""
        key = (screen.path, options)
        if key not in self._known:
            problem = pose(screen, options)
            test = len(problem.fold.rows("test"))
            train = len(problem.fold.rows("train"))
            self._known[key] = Posed(problem.environment.names, test, label_rows(problem), train)
        return self._known[key]

    def choose(
        self,
        screen: Screen,
        levels: Sequence[str],
        options: DataOptions,
        *,
        folds_per_level: int | None = None,
        draw_seed: int = 0,
        only: Collection[str] = (),
    ) -> pd.DataFrame:
        """Every group of the levels: level, fold, rows, held_out, and the reason where it is not.

        Of all groups, or the folds in `only` if there are any, at most `folds_per_level` of each
        level are held out, drawn by `draw_seed`. Raises UserError
        if the screen has one environment, or no fold at any level.
        """
        self.pose(screen, options)
        environments = joined(screen.table, roles_of(screen, options).environment).nunique()
        if environments < 2:
            raise UserError(
                f"{screen.path}: has {environments} environment; expected 2 or more to compare, "
                "choose another --environment"
            )
        found: list[dict[str, Any]] = []
        for level in levels:
            every = groups(screen.table, roles_of(screen, options), level)
            every = [group for group in every if not only or group.fold in only]
            order = numpy_stream(draw_seed, "crossval folds", level).permutation(len(every))
            most = folds_per_level or len(every)
            why: dict[str, tuple[int, str]] = {}
            taken = 0
            for number in order:
                group = every[number]
                why[group.fold] = (
                    (0, f"not drawn: --folds-per-level {folds_per_level}")
                    if taken == most and group.refused is None
                    else self._try(screen, group, options)
                )
                taken += not why[group.fold][1]
            for group in every:
                rows, reason = why[group.fold]
                found.append(dict(zip(COLUMNS, (level, group.fold, rows, not reason, reason),
                                      strict=True)))  # fmt: skip
        table = pd.DataFrame(found, columns=COLUMNS)
        if not table["held_out"].any():
            raise UserError(f"compare: no group can be held out; {table['reason'].iloc[0]}")
        return table

    def _try(self, screen: Screen, group: Group, options: DataOptions) -> tuple[int, str]:
        """Test rows of a group's fold, and why it is not held out; empty where it is."""
        if group.refused is not None:
            return 0, group.refused
        try:
            fold = self.pose(screen, options.model_copy(update={"fold": group.fold}))
        except UserError as error:
            return 0, str(error)
        return fold.test_rows, ""


def spelled_out(folds: Sequence[str], screen: Screen, options: DataOptions) -> list[str]:
    """The folds of a plan file on a screen, each once; "all groups of COLUMN" becomes its groups.

    Raises UserError for a column that is no level, or none of whose groups can be held out.
    """
    found: list[str] = []
    for fold in folds:
        if not fold.startswith(ALL_GROUPS):
            found.append(fold_key(fold, roles_of(screen, options)))
            continue
        column = fold.removeprefix(ALL_GROUPS)
        every = groups(screen.table, roles_of(screen, options), column)
        possible = [group.fold for group in every if group.refused is None]
        if not possible:
            raise UserError(f"{screen.path}: no group of {column} can be held out")
        found += possible
    return list(dict.fromkeys(found))


def chosen_levels(screen: Screen, wanted: Sequence[str] = ()) -> list[str]:
    """The levels to hold out, innermost first, as level 1, 2, 3 of Pernice et al.

    All of the screen's if none is wanted; a word may join several by commas. Raises UserError for a
    level that the screen lacks, and for a column that is none of its nested levels.
    """
    own = screen.roles.levels
    if not own:
        raise UserError(f"{screen.path}: has no levels to hold out; ingest it with --levels")
    named = []
    for word in wanted:
        named += [word] if word in own else [part.strip() for part in word.split(",")]
    for level in named:
        if level in own:
            continue
        if level in screen.table.columns:
            raise UserError(
                f"compare: column {level!r} is not nested in the levels of {screen.path}, which "
                f"are {listed(own)}; hold out one of these, or ingest with other --levels"
            )
        raise UserError(f"compare: unknown level {level!r}; {did_you_mean(level, list(own))}")
    return [level for level in reversed(own) if level in (named or own)]


def level_titles(screen: Screen, levels: Sequence[str]) -> dict[str, str]:
    """Headings of columns by level, with its number in Pernice et al., innermost of the screen 1.

    Plates are level 2 there, also of a screen without sections (LINCS-SC).
    """
    inside_out = [*reversed(screen.roles.levels)]
    first = 2 if inside_out[0] == PLATE else 1
    return {level: f"Level-{first + inside_out.index(level)}: {level}" for level in levels}


def describe_folds(folds: pd.DataFrame) -> list[str]:
    """What was held out at each level and, by reason, what was not; a line each."""
    said = []
    for level, of_level in folds.groupby("level", sort=False):
        taken = of_level[of_level["held_out"]]
        names = ", ".join(fold.partition("=")[2] for fold in taken["fold"]) or "none"
        said.append(f"{level}: {len(taken)} of {len(of_level)} groups held out: {names}")
        for reason, refused in of_level[~of_level["held_out"]].groupby("reason", sort=False):
            said.append(f"{level}: {len(refused)} not held out: {reason}")
    return said
