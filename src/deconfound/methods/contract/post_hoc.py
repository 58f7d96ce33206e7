"""What a post hoc method is: a correction of embeddings that another method made."""

from typing import ClassVar, NamedTuple

import numpy as np

from deconfound.arrays import ROUNDING, Codes, Doubles, Floats, Mask
from deconfound.config import Options
from deconfound.errors import UserError

Controls = Mask | None
"""Which rows are controls, (N,); None where that is unknown."""


class PostHocOptions(Options):
    """Base of the options of every post hoc method."""


class TooFewControls(UserError):
    """The rows to correct hold fewer controls than a correction needs."""

    def __init__(self, found: int, least: int, environment: int | None = None) -> None:
        self.found, self.least, self.environment = found, least, environment
        super().__init__(self.line("all environments" if environment is None else str(environment)))

    def line(self, environment: str) -> str:
        """The message, with the name of the environment."""
        return (
            f"{self.found} controls in {environment}; expected {self.least} or more, name the "
            "controls with --control COLUMN=VALUE or leave these rows out"
        )


class PostHoc:
    """A correction of embeddings; a file of `methods/post_hoc` with one subclass is one, by name.

    A subclass sets `Options`, `SUMMARY` and `PAPER`, and defines `fit` and, if it can map rows that
    `fit` never saw, `transform`.
    """

    Options: ClassVar[type[PostHocOptions]] = PostHocOptions
    SUMMARY: ClassVar[str]
    """One line for `deconfound list methods`."""
    PAPER: ClassVar[str]
    """Authors, title, year."""
    CONTROLS: ClassVar[bool] = False
    """Whether `fit` and `transform` need to know which rows are controls."""
    ADAPTS: ClassVar[bool] = False
    """Whether rows of an environment that `fit` never saw are mapped by statistics of their own."""
    MAPS: ClassVar[bool] = True
    """Whether `transform` takes rows and environments that `fit` never saw. Otherwise all rows are
    fitted, held-out ones too, and the method's name and scores say so."""

    def __init__(self, options: PostHocOptions) -> None:
        self.options = options

    @classmethod
    def require(cls) -> None:
        """Raise UserError if an extra that the method needs is not installed."""

    @classmethod
    def title(cls, name: str) -> str:
        """The part of a corrected method's name that stands for the correction `name`."""
        return name if cls.MAPS else f"{name}-refit"

    def needs_controls(self) -> bool:
        """`CONTROLS`, unless that depends on the options."""
        return self.CONTROLS

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Learn from rows (N, D) float32 of environments (N,) int64; returns them corrected (N, d).

        `control` (N,) bool marks the controls, for a method that needs them. Raises UserError for
        rows that the method cannot be fitted on, TooFewControls if they lack controls.
        """
        raise NotImplementedError

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """New rows (Q, D), corrected: (Q, d) float32; learns nothing.

        `environment` (Q,) int64 may hold codes that `fit` saw and others; −1 is unknown.
        """
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What was left out of what was learnt, and why: one clause each, after `fit`."""
        return []


def require_controls(control: Controls, rows: Mask, least: int, environment: int | None) -> Mask:
    """The controls (N,) among `rows` (N,); raises TooFewControls if they are fewer than `least`."""
    found = rows & control if control is not None else np.zeros_like(rows)
    if (count := int(found.sum())) < least:
        raise TooFewControls(count, least, environment)
    return found


def refuse_unknown(environment: Codes, method: str, use: str) -> None:
    """Raise UserError if a row has no environment, which `method` needs; names what to `use`."""
    unknown = np.flatnonzero(environment < 0)
    if len(unknown):
        raise UserError(
            f"{method}: row {unknown[0]} has no environment, and {method} cannot correct it; leave "
            f"such rows out of the screen, or use {use}"
        )


def unscaled(even: Mask, over: str) -> list[str]:
    """The note that dimensions which are `even` (D,) over some rows are centred alone, if any."""
    if not even.any():
        return []
    return [
        f"{even.sum()} of {len(even)} dimensions are centred and not scaled, as they do not vary "
        f"over {over} beyond rounding"
    ]


class Scale(NamedTuple):
    """What rows are centred and scaled by."""

    mean: Doubles
    """(D,)."""
    sd: Doubles
    """(D,); 1 where a column is even."""
    even: Mask
    """(D,) whether a column varies by no more than rounding."""


def centre_and_scale(rows: Floats | Doubles, least: float = 0.0) -> Scale:
    """Mean and sd of rows (N, D), ddof 0.

    A column is even if its sd is no more than `least`, or than a millionth of its mean, which is
    what rounding to float32 leaves of a constant.
    """
    values = rows.astype(np.float64)
    mean, sd = values.mean(axis=0), values.std(axis=0)
    even = sd <= np.maximum(ROUNDING * np.abs(mean), least)
    return Scale(mean, np.where(even, 1.0, sd), even)
