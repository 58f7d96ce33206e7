"""Relative styles: an image keeps how its own style differs from its environment's mean style.

Ours, beside the styles of Pernice et al., Interventional Style Transfer, 2023, eq. 1, in which all
images imputed by one style image become equally bright: what made a cell brighter than those
around it is then taken for a technical effect, and lost.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconfound import methods
from deconfound.config import RelativeTo
from deconfound.data.controls import control_rows
from deconfound.data.screen import Rows, Screen
from deconfound.data.table import Coded, coded, joined, listed
from deconfound.errors import UserError
from deconfound.methods.base import Imputer
from deconfound.problem import pose
from deconfound.run import Run, read_json
from deconfound.styles import Styles, mean_styles


@dataclass(frozen=True)
class Origins:
    """The mean style of the environment that each row of a screen was taken in."""

    mean: Tensor
    """(E, S) float32, of each environment."""
    code: npt.NDArray[np.int64]
    """(N,) the environment of each row; −1 where it has none."""

    def of(self, row: Tensor) -> Tensor:
        """(B, S) for the rows (B,); NaN where a row has no environment."""
        return mean_style_of(self.mean, torch.from_numpy(self.code[row.cpu().numpy()]))


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


def compared(screen: Screen, label: str | None, rows: Rows, over: RelativeTo | None) -> Rows:
    """Those of `rows` whose styles stand for their environment's: all, or the negative controls.

    Raises UserError if controls are wanted and the screen has none.
    """
    if over != "controls":
        return rows
    return rows[control_rows(screen.table, label, None, str(screen.path))[rows]]


def members_of(
    screen: Screen, label: str | None, environment: Coded, rows: Rows, over: RelativeTo | None
) -> list[Rows]:
    """The rows `compared` of each environment.

    Raises UserError if one has no control where they are wanted.
    """
    rows = compared(screen, label, rows, over)
    members = [rows[environment.codes[rows] == e] for e in range(len(environment.names))]
    for name, found in zip(environment.names, members, strict=True):
        if over == "controls" and not len(found):
            raise UserError(
                f"{screen.path}: {name} has no negative control, over which its mean style is "
                "taken; use --relative-style all"
            )
    return members


def origins_of(run: Run, screen: Screen, styles: Styles, over: RelativeTo, seed: int) -> Origins:
    """Where the rows of a screen were taken, as the imputer of a run sees it.

    The mean style of an environment that the run was trained on is that of its training rows;
    of any other, and of all on a screen that the run was not trained on, that of whatever the
    screen holds of it. Labels are not looked at, but that `over` controls these are known. Raises
    UserError if the screen lacks the environment's columns, names no environment of any row, or
    lacks controls that are wanted.
    """
    columns = run.roles.environment
    missing = [column for column in columns if column not in screen.table.columns]
    if missing:
        raise UserError(
            f"{screen.path}: lacks the column {listed(missing)}, and with relative styles an image "
            "is compared with others of its environment; add it, or use a run without "
            "--relative-style"
        )
    environment = coded(joined(screen.table, columns))
    if not environment.names:
        raise UserError(
            f"{screen.path}: {listed(columns)} is empty in every row, and with relative styles an "
            "image is compared with others of its environment; fill it in, or use a run without "
            "--relative-style"
        )
    usable = np.ones(len(screen), dtype=bool)
    if read_json(run.path / "fold.json")["screen_identity"] == screen.identity:
        trained_on = [e for e, name in enumerate(environment.names) if name in run.environments]
        usable = ~np.isin(environment.codes, trained_on)
        usable[pose(screen, run.config.data).fold.rows("train")] = True
    members = members_of(screen, run.roles.label, environment, np.flatnonzero(usable), over)
    return Origins(mean_styles(styles, members, environment.names, seed), environment.codes)


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
