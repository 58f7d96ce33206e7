"""Standardise: every environment by the mean and spread of its own rows."""

from typing import Literal

import numpy as np

from deconfound.arrays import Codes, Floats, Mask
from deconfound.methods.contract.post_hoc import (
    Controls,
    PostHoc,
    PostHocOptions,
    Scale,
    centre_and_scale,
    require_controls,
    unscaled,
)

FEWEST = 2
"""Least rows of an environment that have a spread."""


class StandardiseOptions(PostHocOptions):
    """Options of standardisation."""

    by: Literal["controls", "all"] = "controls"
    """Rows that an environment's mean and sd are taken over: its controls, or all."""


class Standardise(PostHoc):
    """Centre and scale every environment: Caicedo et al. 2017; Celik et al. 2024, "centre-scale".

    An environment of `fit` keeps the mean and sd that it had there. For one that `fit` never saw
    they are taken over its own rows, or its controls, among the rows that are mapped together. Rows
    without an environment (−1) take those of all environments fitted, together.
    """

    Options = StandardiseOptions
    options: StandardiseOptions
    ADAPTS = True
    SUMMARY = "every environment by the mean and sd of its controls, or of all its rows"
    PAPER = "Caicedo et al., Data-analysis strategies for image-based cell profiling, 2017"

    scales: dict[int, Scale]
    """Of each environment the mean and sd, (D,) each."""
    even: Mask
    """(D,) whether a dimension does not vary in some environment."""

    def needs_controls(self) -> bool:
        """True unless `by` is "all"."""
        return self.options.by == "controls"

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Learn the scale of every environment of rows (N, D); returns them standardised (N, D).

        Raises TooFewControls for an environment with fewer than two.
        """
        everywhere = np.ones(len(embedding), dtype=bool)
        self.even = np.zeros(embedding.shape[1], dtype=bool)
        self.scales = {-1: self._scale(embedding, everywhere, control, -1)}
        return self._mapped(embedding, environment, control, self.scales)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Rows (Q, D), standardised: (Q, D) float32.

        Raises TooFewControls for an environment that `fit` never saw and that has fewer than two.
        """
        return self._mapped(embedding, environment, control, dict(self.scales))

    def notes(self) -> list[str]:
        """The dimensions that are centred alone, in some environment mapped so far."""
        rows = "controls" if self.needs_controls() else "rows"
        return unscaled(self.even, f"the {rows} of an environment")

    def _mapped(
        self, embedding: Floats, environment: Codes, control: Controls, scales: dict[int, Scale]
    ) -> Floats:
        corrected = np.empty_like(embedding)
        for one in np.unique(environment).tolist():
            rows = environment == one
            if one not in scales:
                scales[one] = self._scale(embedding, rows, control, one)
            mean, sd, even = scales[one]
            self.even |= even
            corrected[rows] = (embedding[rows] - mean) / sd
        return corrected

    def _scale(self, embedding: Floats, rows: Mask, control: Controls, one: int) -> Scale:
        if self.needs_controls():
            rows = require_controls(control, rows, FEWEST, one if one >= 0 else None)
        return centre_and_scale(embedding[rows])
