"""Typical variation normalisation: controls of all environments get one mean and covariance."""

import numpy as np
from pydantic import Field

from deconfound.arrays import ROUNDING, Codes, Doubles, Floats, Mask
from deconfound.methods.contract.post_hoc import (
    Controls,
    PostHoc,
    PostHocOptions,
    Scale,
    centre_and_scale,
    refuse_unknown,
    require_controls,
    unscaled,
)
from deconfound.methods.post_hoc.pca import Components
from deconfound.methods.post_hoc.sphering import power

RIDGE = 0.5
"""Added to every variance of a covariance of controls, as EFAAR does."""
FEWEST = 2
Alignments = dict[int, tuple[Doubles, Doubles, Doubles]]


class TvnOptions(PostHocOptions):
    """Options of typical variation normalisation."""

    components: int | None = Field(None, ge=1)
    """Principal components of controls that are kept; all in which they vary if not given."""


class Tvn(PostHoc):
    """TVN: Ando et al. 2017, section 3.2, in the form of EFAAR (Celik et al. 2024).

    Rows are standardised and projected on the principal components of all controls fitted. Then
    every environment is centred and scaled on its own controls and, by CORAL, multiplied by
    (C_e + ½I)^(−½) (C + ½I)^(½), with the covariance C_e of its controls and C of all controls,
    both after the scaling (ddof 1). N controls span N − 1 components at most: the others are
    rounding, and are left out.

    An environment of `fit` keeps its alignment. One that `fit` never saw is aligned by its own
    controls among the rows that are mapped together, and cannot be mapped without controls.
    """

    Options = TvnOptions
    options: TvnOptions
    ADAPTS = True
    SUMMARY = "controls of every environment are given one mean, spread and covariance"
    PAPER = "Ando et al., Improving phenotypic measurements in high-content imaging screens, 2017"
    CONTROLS = True

    components: Components
    pooled: Doubles
    """(C + ½I)^(½) of all controls fitted."""
    alignments: Alignments
    """Of each environment the mean (d,), the sd (d,) and the map (d, d) that align it."""
    even: Mask
    """(d,) whether a component does not vary over the controls of some environment."""

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Learn from the controls among rows (N, D); returns all of them aligned, (N, d).

        Raises TooFewControls for an environment with fewer than two, and UserError for a row
        without an environment and where the controls do not vary.
        """
        refuse_unknown(environment, "tvn", "sphering")
        everywhere = np.ones(len(embedding), dtype=bool)
        controls = require_controls(control, everywhere, FEWEST, None)
        most = self.options.components or embedding.shape[1]
        self.components = Components.of(embedding[controls], most)
        self.even = np.zeros(len(self.components.spread), dtype=bool)
        projected = self.components.project(embedding)
        scaled = np.empty_like(projected[controls])
        of_control = environment[controls]
        for one in np.unique(environment).tolist():
            of_one = require_controls(control, environment == one, FEWEST, one)
            mean, sd, _ = self._scale(projected[of_one])
            scaled[of_control == one] = (projected[of_one] - mean) / sd
        self.pooled = power(_covariance(scaled), 0.5, RIDGE)
        self.alignments = {}
        return self._aligned(projected, environment, control, self.alignments)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Rows (Q, D), aligned: (Q, d) float32.

        Raises TooFewControls for an environment that `fit` never saw and that has fewer than two.
        """
        refuse_unknown(environment, "tvn", "sphering")
        projected = self.components.project(embedding)
        return self._aligned(projected, environment, control, dict(self.alignments))

    def _aligned(
        self, projected: Doubles, environment: Codes, control: Controls, alignments: Alignments
    ) -> Floats:
        aligned = np.empty(projected.shape, dtype=np.float32)
        for one in np.unique(environment).tolist():
            rows = environment == one
            if one not in alignments:
                of_one = projected[require_controls(control, rows, FEWEST, one)]
                mean, sd, even = self._scale(of_one)
                self.even |= even
                whiten = power(_covariance((of_one - mean) / sd), -0.5, RIDGE)
                alignments[one] = mean, sd, whiten @ self.pooled
            mean, sd, recolour = alignments[one]
            aligned[rows] = (projected[rows] - mean) / sd @ recolour
        return aligned

    def _scale(self, controls: Doubles) -> Scale:
        return centre_and_scale(controls, ROUNDING * self.components.spread[0])

    def notes(self) -> list[str]:
        """The components left out, and those that are centred alone in some environment."""
        own = unscaled(self.even, "the controls of an environment")
        return [*self.components.notes(), *own]


def _covariance(rows: Doubles) -> Doubles:
    return np.atleast_2d(np.cov(rows, rowvar=False, ddof=1))
