"""What a post hoc method is: it corrects embeddings that another method made."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deconfound.config import Options

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]


class PostHocOptions(Options):
    """Base of the options of every post hoc method."""


class PostHoc:
    """A correction of embeddings; a file in this folder with one subclass is one, by its name.

    A subclass sets `Options`, `SUMMARY` and `PAPER`, and defines `fit` and, if it can map rows that
    `fit` never saw, `transform`.
    """

    Options: ClassVar[type[PostHocOptions]] = PostHocOptions
    SUMMARY: ClassVar[str]
    """One line for `deconfound methods`."""
    PAPER: ClassVar[str]
    """Authors, title, year."""
    MAPS: ClassVar[bool] = True
    """Whether `transform` takes rows and environments that `fit` never saw. Otherwise all rows are
    fitted, those held out too, and everything made of it says so."""

    def __init__(self, options: PostHocOptions) -> None:
        self.options = options

    @classmethod
    def require(cls) -> None:
        """Raise UserError where an extra that it needs is not installed."""

    @classmethod
    def title(cls, name: str) -> str:
        """What `name` adds to the name of the method that it corrects."""
        return name if cls.MAPS else f"{name}-refit"

    def fit(self, embedding: Floats, environment: Codes) -> Floats:
        """Learn from rows (N, D) float32 of environments (N,) int64; returns them corrected (N, d).

        Raises UserError where the rows cannot be learnt from.
        """
        raise NotImplementedError

    def transform(self, embedding: Floats, environment: Codes) -> Floats:
        """New rows (Q, D), corrected: (Q, d) float32; learns nothing.

        `environment` (Q,) int64 has any codes, those of `fit` or others; −1 is an unknown one.
        """
        raise NotImplementedError
