"""The recommended recipe: how a screen is best trained, by what its table and its pixels are.

ERM on groups of images that are made alike first. Chosen by comparing recipes on simulated screens
with held-out series (docs/which-method.md); which of its forms a screen gets follows from counts of
rows and of negative controls alone.
"""

from typing import Any, NamedTuple

import numpy as np

from deconfound.arrays import Mask
from deconfound.config import DataOptions, RelativeTo, StandardiseName, validated
from deconfound.data.folds.controls import marked_controls
from deconfound.data.folds.problem import (
    ENVIRONMENT,
    WITHOUT_CONTROLS,
    Problem,
    pose,
    with_levels_around,
)
from deconfound.data.loading.standardisation import FEWEST
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.nets.encoder import Norm
from deconfound.runs.config import RunConfig, config_model

RECOMMENDED = "recommended"
"""The word that stands for the recipe where a method is named."""
METHOD = "erm"
"""What the recipe trains, in each of its forms."""
TRAINING = {"schedule": "cosine", "warmup_steps": 20}
TURNED = {"augment": "dihedral"}
"""Of images, beside `TRAINING`."""
LEARNING_RATE = 0.002


class Recommended(NamedTuple):
    """The recipe for one screen."""

    config: RunConfig
    why: tuple[str, ...]
    """What was chosen, and why, in words."""

    @property
    def text(self) -> str:
        """Both in one line."""
        return "; ".join(self.why)


class _Alike(NamedTuple):
    by: str
    over: RelativeTo
    why: str


def recommend(screen: Screen, data: DataOptions | None = None) -> Recommended:
    """The recommended recipe for `screen`, with the roles, fold and controls that `data` names.

    ERM; with groups made alike (images by spectra, profiles by moments), over negative controls
    where every group has 16 to count and else over all rows. Groups are the environments or, if
    some have fewer rows, those of the innermost level that all have enough; or those that
    `data.standardise_by` names. A group of training counts its training rows, as its statistics do,
    any other all of its rows. No label is looked at but to find controls, and no pixel. Raises
    UserError as `pose` does.
    """
    data = data or DataOptions()
    plain = {"standardise_by": None, "standardise_with": "all", "standardise": "moments"}
    problem = pose(screen, data.model_copy(update=plain))
    rows = "profiles" if screen.holds_profiles else "images"
    training = TRAINING | ({} if screen.holds_profiles else TURNED)
    chosen = _alike(screen, problem, data, rows)
    if isinstance(chosen, str):
        config = _config(data, training, _norm(screen, "all"))
        return Recommended(config, (f"{METHOD}, no groups made alike", chosen))
    kind: StandardiseName = "moments" if screen.holds_profiles else "spectra"
    alike = {"standardise_by": chosen.by, "standardise_with": chosen.over, "standardise": kind}
    groups = "environments" if chosen.by == ENVIRONMENT else f"groups of {chosen.by}"
    over = "negative controls" if chosen.over == "controls" else f"all {rows}"
    what = f"{METHOD} on {rows} whose {groups} are made alike in {kind}, taken over {over}"
    config = _config(data.model_copy(update=alike), training, _norm(screen, chosen.over))
    return Recommended(config, (what, chosen.why))


def _norm(screen: Screen, over: RelativeTo) -> Norm:
    """Batch normalisation costs least in distribution once controls made images alike.

    Where they did not, groups still differ, and it is read off with the label: instance
    normalisation. Profiles have the batch's under every norm.
    """
    return "batch" if over == "controls" or screen.holds_profiles else "instance"


def _config(data: DataOptions, training: dict[str, Any], norm: Norm) -> RunConfig:
    options = {"norm": norm, "learning_rate": LEARNING_RATE}
    values = {"data": data.model_dump(exclude_unset=True), "training": training, "options": options}
    return validated(config_model(METHOD), values | {"method": METHOD}, RECOMMENDED)


def _alike(screen: Screen, problem: Problem, data: DataOptions, rows: str) -> _Alike | str:
    """The groups that are made alike, or why none are; `rows` is what the screen holds."""
    if problem.percentile_by:
        return f"percentiles of {problem.percentile_by[-1]} make its groups alike already"
    roles, given = problem.roles, data.standardise_by
    if len(screen.coded(roles.environment).names) < 2:
        return "the screen has one environment"
    controls = _controls(screen, problem, data)
    for by in [given] if given is not None else [ENVIRONMENT, *reversed(roles.levels)]:
        environments = by == ENVIRONMENT
        columns = roles.environment if environments else with_levels_around(screen, roles, by)
        every = "every environment" if environments else f"every group of {by}"
        before = "" if environments or given else f"not every environment has {FEWEST} {rows}; "
        if controls is not None and _fewest(screen, problem, columns, controls) >= FEWEST:
            why = f"{before}{every} has at least {FEWEST} negative controls"
            return _Alike(by, "controls", why)
        if _fewest(screen, problem, columns, None) >= FEWEST:
            lacking = "no row is marked as a control"
            if controls is not None:
                lacking = f"not {every} has {FEWEST} negative controls"
            why = f"{before}{every} has at least {FEWEST} {rows}, but {lacking}"
            return _Alike(by, "all", why)
    if given is not None:
        return _Alike(given, "all", f"not every group of {given} has {FEWEST} {rows}")
    return f"no level has {FEWEST} {rows} in each of its groups, nor has every environment"


def _controls(screen: Screen, problem: Problem, data: DataOptions) -> Mask | None:
    """(N,) whether each row is a negative control; None where that is not known."""
    where, label = str(screen.path), problem.roles.label
    try:
        return marked_controls(screen.table, label, data.controls, where, WITHOUT_CONTROLS)
    except UserError:
        return None


def _fewest(screen: Screen, problem: Problem, columns: tuple[str, ...], which: Mask | None) -> int:
    """Rows that the statistics of a group count, in the group with fewest; 0 if it is the only one.

    Those of training in a group that training has, and else all; of `which` (N,) if given.
    """
    group = screen.coded(columns)
    if len(group.names) < 2:
        return 0
    present = group.codes >= 0
    train = np.zeros(len(screen), dtype=bool)
    train[problem.fold.rows("train")] = True
    seen = np.unique(group.codes[present & train])
    counted = present & (~np.isin(group.codes, seen) | train)
    if which is not None:
        counted &= which
    return int(np.bincount(group.codes[counted], minlength=len(group.names)).min())
