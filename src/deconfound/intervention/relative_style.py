"""Relative styles: an image keeps how its own style differs from its environment's mean style.

Ours, beside the styles of Pernice et al., Interventional Style Transfer, 2023, eq. 1, in which all
images imputed by one style image become equally bright: what made a cell brighter than those
around it is then taken for a technical effect, and lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconfound import methods
from deconfound.arrays import Rows
from deconfound.config import RelativeTo
from deconfound.data.folds.controls import CONTROL_TYPE, control_rows
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded, Roles, coded, joined, listed
from deconfound.errors import UserError
from deconfound.intervention.styles import Styles, mean_styles, styles_of
from deconfound.methods.base import Imputer
from deconfound.runs.run import Run, group_codes


@dataclass(frozen=True)
class Origins:
    """The mean style of the environment that each row of a screen was taken in."""

    mean: Tensor
    """(E, S) float32, of each environment."""
    names: tuple[str, ...]
    """The environments."""
    code: npt.NDArray[np.int64]
    """(N,) the environment of each row."""

    def of(self, row: Tensor) -> Tensor:
        """(B, S) for the rows (B,)."""
        return mean_style_of(self.mean, torch.from_numpy(self.code[row.cpu().numpy()]))

    def of_names(self, names: Sequence[str]) -> Tensor:
        """(B, S) for environments by name."""
        return self.mean[[self.names.index(name) for name in names]]


def mean_style_of(mean: Tensor, environment: Tensor) -> Tensor:
    """Of the mean styles (E, S) those of environments (B,) int64, (B, S); NaN for −1."""
    known = environment.to(mean.device)
    return torch.where((known >= 0)[:, None], mean[known.clamp(min=0)], torch.nan)


def relative(imputer: Imputer, image: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The styles (B, S) that images (B, C, H, W) get where `target` (B, S) is meant for the mean.

    `source` (B, S) holds the mean styles of their environments; where it is NaN the image is its
    own, and takes the target over.
    """
    own = imputer.style(image, torch.full_like(source[:, 0], -1, dtype=torch.int64)).float()
    return imputer.relative_style(own, torch.where(source.isnan(), own, source), target)


@dataclass(frozen=True)
class Compared:
    """The images of each environment of a screen over which its mean style is taken."""

    environment: Coded
    """Of every row of the screen."""
    members: list[Rows]
    """Rows of each environment."""

    def of(self, names: Sequence[str]) -> list[Rows]:
        """Those of environments by name."""
        return [self.members[self.environment.names.index(name)] for name in names]

    def origins(self, styles: Styles, seed: int) -> Origins:
        """The mean styles; of at most 256 images of each environment, drawn by seed."""
        mean = mean_styles(styles, self.members, self.environment.names, seed)
        return Origins(mean, self.environment.names, self.environment.codes)


def compared(
    screen: Screen,
    roles: Roles,
    over: RelativeTo,
    controls: Sequence[str],
    trained_on: Sequence[str],
    train: Rows | None,
) -> Compared:
    """Of environments `trained_on` the rows `train`, of others all; or the controls among them.

    `train` is None on another screen than the run's: then all rows of every environment count.
    Controls are the labels named `controls`, or what `control_rows` finds. Raises UserError if a
    row names no environment, and if an environment has no control where these are wanted.
    """
    columns, where = roles.environment, screen.path
    remedy = "an image is compared with others of its environment: leave --relative-style out"
    if missing := [column for column in columns if column not in screen.table.columns]:
        raise UserError(f"{where}: lacks the column {listed(missing)}; add it, as {remedy}")
    environment = coded(joined(screen.table, columns))
    unknown = np.flatnonzero(environment.codes < 0)
    if len(unknown):
        raise UserError(
            f"{where}: {listed(columns)} is empty in {len(unknown):,} rows, first in row "
            f"{unknown[0]}; fill it in, as {remedy}"
        )
    usable = np.ones(len(screen), dtype=bool)
    if train is not None:
        known = [e for e, name in enumerate(environment.names) if name in trained_on]
        usable = ~np.isin(environment.codes, known)
        usable[train] = True
    if over == "controls":
        usable &= _controls(screen, roles.label, controls)
    members = [
        np.flatnonzero(usable & (environment.codes == e)) for e in range(len(environment.names))
    ]
    for name, rows in zip(environment.names, members, strict=True):
        if not len(rows):
            raise UserError(
                f"{where}: {name} has no negative control to take its mean style over; mark one, "
                "or choose --relative-style all where the run is fitted or images are imputed"
            )
    return Compared(environment, members)


def _controls(screen: Screen, label: str | None, named: Sequence[str]) -> npt.NDArray[np.bool_]:
    table = screen.table
    label = label if label in table.columns else None
    if named and label is not None:
        return table[label].isin(list(named)).to_numpy(dtype=bool)
    if CONTROL_TYPE not in table.columns and label is None:
        raise UserError(
            f"{screen.path}: no column {CONTROL_TYPE} and none of labels, so which rows are "
            "negative controls is unknown; add one, or choose --relative-style all where the run "
            "is fitted or images are imputed"
        )
    try:
        return control_rows(table, label, None, str(screen.path))
    except UserError as error:
        raise UserError(
            f"{str(error).partition(';')[0]}; mark them, or choose --relative-style all where the "
            "run is fitted or images are imputed"
        ) from error


def styles_anywhere(run: Run, screen: Screen, imputer: Imputer, intensity: Intensity) -> Styles:
    """The styles of rows of any screen, as the imputer that a run holds sees them."""
    unknown = np.full(len(screen), -1, dtype=np.int64)
    device = intensity.offset.device
    return styles_of(imputer, intensity, screen, unknown, group_codes(run, screen), device)


def origins_of(run: Run, screen: Screen, styles: Styles, over: RelativeTo, seed: int) -> Origins:
    """Where the rows of a screen were taken, as the imputer of a run sees it.

    The mean style of an environment that the run was trained on is that of its training rows;
    of any other, and of all on a screen that the run was not trained on, that of whatever the
    screen holds of it. Of labels nothing is used but, with controls, which rows these are. Raises
    UserError as `compared`.
    """
    train = np.flatnonzero(run.parts(screen) == "train") if run.trained_on(screen) else None
    found = compared(screen, run.roles, over, run.config.data.controls, run.environments, train)
    return found.origins(styles, seed)


def refuse_absolute(method: str, where: str) -> None:
    """Raise UserError if an image cannot keep anything of its own in the styles of a method."""
    able = [
        name
        for name in methods.names()
        if issubclass(kind := methods.load(name), Imputer)
        and kind.relative_style is not Imputer.relative_style
    ]
    if method not in able:
        raise UserError(
            f"{where}: --relative-style needs styles made of means and deviations, which "
            f"{method}'s are not; leave it out, or use {listed(able)}"
        )
