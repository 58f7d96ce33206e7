"""Sphering: the features in which controls vary are scaled down until controls are a sphere."""

import numpy as np
from pydantic import Field

from deconfound.arrays import ROUNDING, Codes, Doubles, Floats, Mask
from deconfound.methods.contract.post_hoc import (
    Controls,
    PostHoc,
    PostHocOptions,
    centre_and_scale,
    require_controls,
    unscaled,
)


class SpheringOptions(PostHocOptions):
    """Options of sphering."""

    regularisation: float = Field(0.01, gt=0)
    """Added to the variances of controls before their root is taken; the smaller it is, the more
    the directions in which controls hardly vary are magnified."""


class Sphering(PostHoc):
    """Sphering (ZCA-cor) on controls: Kessy et al. 2018, table 1; as in Ando et al. 2017.

    x ↦ (R + λI)^(−½) (x − μ) / σ, with mean μ, sd σ and correlation R of the controls among the
    rows fitted, of all environments together. Directions in which controls of different
    environments vary are scaled down; a new environment needs no controls of its own.
    """

    Options = SpheringOptions
    options: SpheringOptions
    SUMMARY = "features in which controls vary are scaled down until controls are a sphere"
    PAPER = "Kessy et al., Optimal whitening and decorrelation, 2018; Ando et al. 2017"
    CONTROLS = True

    mean: Doubles
    """(D,)."""
    map: Doubles
    """(D, D)."""
    even: Mask
    """(D,) whether the controls do not vary in a dimension."""

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Learn from the controls among rows (N, D); returns all of them sphered, (N, D).

        Raises TooFewControls for fewer than two.
        """
        everywhere = np.ones(len(embedding), dtype=bool)
        controls = embedding[require_controls(control, everywhere, 2, None)]
        self.mean, sd, self.even = centre_and_scale(controls)
        covariance = np.atleast_2d(np.cov((controls - self.mean) / sd, rowvar=False, ddof=0))
        self.map = power(covariance, -0.5, self.options.regularisation) / sd[:, None]
        return self.transform(embedding, environment, control)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Rows (Q, D), sphered: (Q, D) float32."""
        del environment, control
        return np.asarray((embedding - self.mean) @ self.map, dtype=np.float32)

    def notes(self) -> list[str]:
        """The dimensions that are centred alone."""
        return unscaled(self.even, "the controls")


def power(covariance: Doubles, exponent: float, added: float) -> Doubles:
    """(covariance + `added` · I) to a power, symmetric: (D, D).

    A direction whose variance is rounding even with `added` becomes 0.
    """
    variance, direction = np.linalg.eigh(covariance)
    total = np.maximum(variance, 0) + added
    raised = np.zeros_like(total)
    spread = total > ROUNDING**2 * total[-1]
    raised[spread] = total[spread] ** exponent
    return np.asarray((direction * raised) @ direction.T)
