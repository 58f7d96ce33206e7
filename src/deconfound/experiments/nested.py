"""Which groups are left out of training beside the held-out one, so that it chooses nothing.

What is chosen for a held-out group is chosen by training without that group and without another
one, and by what is then read on the other. Both groups are left out of one such run, so one run
serves the choices for both.
"""

from collections.abc import Sequence
from typing import NamedTuple

from deconfound.config import DataOptions
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen
from deconfound.runtime.seeds import numpy_stream

NEIGHBOURS = 2
"""Groups on either side, in a ring drawn once, that are left out beside a group."""


class Pair(NamedTuple):
    """Two groups of a level that are left out of training together."""

    fold: str
    """The fold of the run."""
    without: str
    """The group that it leaves out as well."""

    def part_of_other(self, held_out: str) -> str:
        """The part that the group beside `held_out` plays in the run."""
        return "ood_val" if held_out == self.fold else "test"

    def other(self, held_out: str) -> str:
        """The group beside `held_out`."""
        return self.without if held_out == self.fold else self.fold


def pairs(screen: Screen, options: DataOptions, fold: str) -> list[Pair]:
    """Pairs of the group that `fold` holds out and other groups of its level.

    All pairs of a level of up to 5 groups; of more groups those with the two before and the two
    after it in a ring, drawn without regard to labels and pixels. None for a fold of no level.
    """
    level, named, _ = fold.partition("=")
    roles = roles_of(screen, options)
    if not named or level not in roles.levels:
        return []
    every = [group.fold for group in groups(screen.table, roles, level) if group.refused is None]
    if fold not in every:
        return []
    order = numpy_stream(0, "nested groups", level).permutation(len(every))
    ring = [every[number] for number in order]
    return _beside(ring, fold)


def _beside(ring: Sequence[str], fold: str) -> list[Pair]:
    place, size = ring.index(fold), len(ring)
    steps = [step for distance in range(1, NEIGHBOURS + 1) for step in (distance, -distance)]
    others = dict.fromkeys(ring[(place + step) % size] for step in steps)
    others.pop(fold, None)
    return [Pair(*sorted((fold, other))) for other in others]
