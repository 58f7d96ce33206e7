"""The groups that a study holds out: of the levels that are named, or of the outermost."""

import pandas as pd

from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles, listed
from deconfound.errors import UserError
from deconfound.experiments.held_out import Folds, chosen_levels
from deconfound.studies.comparison import CompareOptions


def chosen_folds(screen: Screen, options: CompareOptions, posed: Folds) -> pd.DataFrame:
    """The groups held out, as `Folds.choose` tells; of a word LEVEL=GROUP that group alone.

    Of a screen's levels the outermost that can be held out, if none is named.
    """
    words = [part.strip() for word in options.hold_out for part in _parts(word, screen)]
    named = [word.partition("=")[0] for word in words]
    levels = chosen_levels(screen, list(dict.fromkeys(named)) or [_outermost(screen, options)])
    roles = roles_of(screen, options.data)
    alone = {fold_key(word, roles) for word in words if "=" in word}
    whole = {word for word in words if "=" not in word}
    there = groups_of(screen, roles, set(named))
    if lacking := sorted(alone - set(there)):
        level, _, group = lacking[0].partition("=")
        own = [fold.partition("=")[2] for fold in there if fold.startswith(f"{level}=")]
        raise UserError(
            f"compare: --hold-out {level}={group}: no such group; {level} has {listed(own, 12)}"
        )
    return posed.choose(
        screen,
        levels,
        options.data,
        folds_per_level=options.folds_per_level,
        draw_seed=options.draw_seed,
        only=[] if not alone else [*alone, *groups_of(screen, roles, whole)],
    )


def _parts(word: str, screen: Screen) -> list[str]:
    """The levels that a word joins by commas; a level or group with a comma in its name is one."""
    return [word] if "=" in word or word in screen.roles.levels else word.split(",")


def groups_of(screen: Screen, roles: Roles, levels: set[str]) -> list[str]:
    """The folds of all groups of the levels, those too that cannot be held out."""
    return [group.fold for level in sorted(levels) for group in groups(screen.table, roles, level)]


def _outermost(screen: Screen, options: CompareOptions) -> str:
    roles = roles_of(screen, options.data)
    for level in roles.levels:
        if any(group.refused is None for group in groups(screen.table, roles, level)):
            return level
    raise UserError(f"{screen.path}: no level has a group that can be held out")
