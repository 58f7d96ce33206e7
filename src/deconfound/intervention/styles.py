"""Style codes: of rows of a screen, in a bank for each environment, their means, relative to these.

Relative styles are not in the paper: an image keeps how its own style differs from its
environment's mean style. With the styles of Pernice et al., Interventional Style Transfer, 2023,
eq. 1, all images imputed by one style image become equally bright: that a cell was brighter than
its neighbours is then treated as a technical effect, and lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deconfound import methods
from deconfound.arrays import Rows
from deconfound.config import RelativeTo
from deconfound.data.folds.controls import marked_controls
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded, Roles, coded, joined, listed
from deconfound.errors import UserError
from deconfound.methods.contract import Imputer
from deconfound.runs.run import Run, group_codes
from deconfound.runtime.seeds import numpy_stream

AT_ONCE = 128
"""Most images that an imputer receives at once."""
MEAN_OF = 256
"""Most images that the mean style of an environment is taken over."""
WITHOUT = "choose --relative-style all where the run is fitted or images are imputed"
"""The remedy where controls are not known."""

Styles = Callable[[Rows], Tensor]
"""Rows (B,) of a screen to their styles (B, S) float32."""


def styles_of(
    imputer: Imputer,
    intensity: Intensity,
    screen: Screen,
    environment: Rows,
    group: Rows | None,
    device: torch.device,
) -> Styles:
    """A function from rows of a screen to the styles that an imputer gives them.

    `environment` (N,) holds each row's training environment, −1 where unknown. `group` (N,) holds
    each row's percentile group, where `intensity` has groups.
    """
    reader = BatchReader(
        screen, intensity=intensity, device=device, environment=environment, group=group
    )

    @torch.no_grad()
    def styles(rows: Rows) -> Tensor:
        batches = reader.stream(np.split(rows, np.arange(AT_ONCE, len(rows), AT_ONCE)))
        return torch.cat([imputer.style(one.image, one.environment).float() for one in batches])

    return styles


def style_bank(
    styles: Styles,
    members: Sequence[Rows],
    names: Sequence[str],
    count: int,
    images: int,
    seed: int,
) -> Tensor:
    """(K, `count`, S) float32: `count` styles for each environment, from its `members`.

    Each style is the mean over `images` rows, drawn by seed: without replacement until the members
    are used up, then with replacement.
    """
    found = []
    for name, rows in zip(names, members, strict=True):
        stream = numpy_stream(seed, "style bank", name)
        drawn = stream.permutation(rows)[: count * images]
        again = stream.choice(rows, count * images - len(drawn))
        found.append(styles(np.concatenate([drawn, again])).reshape(count, images, -1).mean(dim=1))
    return torch.stack(found)


def mean_styles(styles: Styles, members: Sequence[Rows], names: Sequence[str], seed: int) -> Tensor:
    """(E, S) float32: for each environment the mean over at most 256 `members`, drawn by seed."""
    found = []
    for name, rows in zip(names, members, strict=True):
        drawn = numpy_stream(seed, "mean style", name).permutation(rows)[:MEAN_OF]
        found.append(styles(np.sort(drawn)).mean(dim=0))
    return torch.stack(found)


@dataclass(frozen=True)
class SourceStyles:
    """The mean style of each row's environment, in a screen."""

    mean: Tensor
    """(E, S) float32, one for each environment."""
    environment: Coded
    """The environment of every row of the screen."""

    def of(self, row: Tensor) -> Tensor:
        """(B, S): the mean styles of the environments of the rows (B,)."""
        return mean_style_of(self.mean, torch.from_numpy(self.environment.codes[row.cpu().numpy()]))

    def of_names(self, names: Sequence[str]) -> Tensor:
        """(B, S): the mean styles of environments by name."""
        return self.mean[[self.environment.names.index(name) for name in names]]


def mean_style_of(mean: Tensor, environment: Tensor) -> Tensor:
    """Rows of the mean styles (E, S) for environments (B,) int64: (B, S), NaN where −1."""
    known = environment.to(mean.device)
    return torch.where((known >= 0)[:, None], mean[known.clamp(min=0)], torch.nan)


@dataclass(frozen=True)
class StyleReference:
    """The images of each environment of a screen that its mean style is taken over."""

    environment: Coded
    """The environment of every row of the screen."""
    members: list[Rows]
    """Rows of each environment that its mean style is taken over."""

    def of(self, names: Sequence[str]) -> list[Rows]:
        """The members of environments by name."""
        return [self.members[self.environment.names.index(name)] for name in names]


def style_reference(
    screen: Screen,
    roles: Roles,
    over: RelativeTo,
    controls: Sequence[str],
    trained_on: Sequence[str],
    train: Rows | None,
) -> StyleReference:
    """The rows that the mean style of each environment is taken over.

    For environments `trained_on` they are the rows `train`, for others all rows; with `over`
    "controls", the controls among them. On another screen than the run's `train` is None, and all
    rows of every environment count. Controls are rows of the labels `controls`, or, if there are
    none, what `control_rows` finds. Raises UserError if a row has no environment, or if an
    environment has no control where `over` is "controls".
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
        usable &= marked_controls(screen.table, roles.label, controls, str(where), WITHOUT)
    members = []
    for code, name in enumerate(environment.names):
        members.append(np.flatnonzero(usable & (environment.codes == code)))
        if not len(members[-1]):
            raise UserError(
                f"{where}: {name} has no negative control to take its mean style over; mark one, "
                f"or {WITHOUT}"
            )
    return StyleReference(environment, members)


def of_sets(
    run: Run,
    screen: Screen,
    roles: Roles,
    controls: Sequence[str],
    trained_on: Sequence[str],
    train: Rows | None,
) -> RelativeTo | None:
    """What the styles of a run are relative to where the user does not say; None where to nothing.

    Styles of sets are relative to the controls of an environment if every one has some, else to all
    of its images.
    """
    if not run.config.options.of_sets:
        return None
    try:
        style_reference(screen, roles, "controls", controls, trained_on, train)
    except UserError:
        return "all"
    return "controls"


def of_sets_in(run: Run, screen: Screen) -> RelativeTo | None:
    """The same for a finished run of an imputer, on its own screen or on another."""
    train = np.flatnonzero(run.parts(screen) == "train") if run.trained_on(screen) else None
    return of_sets(run, screen, run.roles, run.config.data.controls, run.environments, train)


def styles_anywhere(run: Run, screen: Screen, imputer: Imputer, intensity: Intensity) -> Styles:
    """Styles of rows of any screen, by the imputer of a run, as if environments were unknown."""
    unknown = np.full(len(screen), -1, dtype=np.int64)
    device = intensity.offset.device
    return styles_of(imputer, intensity, screen, unknown, group_codes(run, screen), device)


def source_styles_of(
    run: Run, screen: Screen, styles: Styles, over: RelativeTo, seed: int
) -> SourceStyles:
    """The mean style of each row's environment, by the imputer of a run.

    In the run's own screen it is taken over training rows for environments trained on, and over
    all rows for others; in another screen always over all rows. Labels are used only to find
    controls, where `over` is "controls". Raises UserError as `style_reference`.
    """
    train = np.flatnonzero(run.parts(screen) == "train") if run.trained_on(screen) else None
    found = style_reference(
        screen, run.roles, over, run.config.data.controls, run.environments, train
    )
    mean = mean_styles(styles, found.members, found.environment.names, seed)
    return SourceStyles(mean, found.environment)


def refuse_absolute(method: str, where: str) -> None:
    """Raise UserError, which begins with `where`, if styles of a method cannot be relative."""
    able = [
        name
        for name in methods.names()
        if issubclass(kind := methods.load(name), Imputer) and kind.RELATIVE
    ]
    if method not in able:
        raise UserError(
            f"{where}: --relative-style needs styles made of means and deviations, which "
            f"{method}'s are not; leave it out, or use {listed(able)}"
        )
