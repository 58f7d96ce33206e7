"""PCA: the leading principal components of standardised features."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from deconfound.arrays import ROUNDING, Codes, Doubles, Floats
from deconfound.errors import UserError
from deconfound.methods.contract.post_hoc import Controls, PostHoc, PostHocOptions, centre_and_scale


class PcaOptions(PostHocOptions):
    """Options of PCA."""

    components: int = Field(64, ge=1)
    """Principal components of the standardised features that are kept; fewer where the rows learnt
    from do not span as many."""


class Pca(PostHoc):
    """Principal components of standardised features: Hotelling 1933; Makino et al., SCBD, A.3.

    The baseline of that paper for CellProfiler features, with 64 components. Mean, sd and loadings
    are those of the rows fitted; environments are ignored, and nothing is corrected.
    """

    Options = PcaOptions
    options: PcaOptions
    SUMMARY = "leading principal components of standardised features; corrects nothing by itself"
    PAPER = "Hotelling 1933; as the baseline of Makino et al., SCBD, section 4.2"

    components: "Components"

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Learn mean, sd and loadings of rows (N, D); returns their components (N, d).

        Raises UserError where nothing varies.
        """
        self.components = Components.of(embedding, self.options.components)
        return self.transform(embedding, environment, control)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Components (Q, d) float32 of rows (Q, D)."""
        del environment, control
        return self.components.project(embedding).astype(np.float32)

    def notes(self) -> list[str]:
        """The components left out."""
        return self.components.notes()


@dataclass(frozen=True)
class Components:
    """Standardisation and principal components, fitted on some rows.

    N centred rows span N − 1 components at most. One whose sd is no more than a millionth of the
    largest is rounding and is left out, as a dimension is that does not vary.
    """

    mean: Doubles
    """(D,)."""
    sd: Doubles
    """(D,); infinite where a dimension does not vary, which nothing is read of."""
    loadings: Doubles
    """(D, d), orthonormal."""
    spread: Doubles
    """(d,) sd of each component over the rows fitted, the largest first; ddof 1."""
    rows: int
    """Rows fitted."""
    asked: int
    """Components asked for, or dimensions, if they are fewer."""

    @classmethod
    def of(cls, embedding: Floats, most: int) -> "Components":
        """Fitted on rows (N, D); at most `most` components.

        Raises UserError where no dimension varies.
        """
        from sklearn.decomposition import PCA

        rows, dimensions = embedding.shape
        mean, sd, even = centre_and_scale(embedding)
        if even.all():
            raise UserError(
                f"none of the {dimensions} dimensions varies over the {rows} rows to learn from "
                "beyond rounding, so there is no principal component; give rows that differ"
            )
        sd = np.where(even, np.inf, sd)
        count = min(most, rows, dimensions)
        pca = PCA(count, svd_solver="covariance_eigh").fit((embedding - mean) / sd)
        spread = np.sqrt(pca.explained_variance_)
        kept = (spread > ROUNDING * spread[0]) & (np.arange(count) < rows - 1)
        return cls(mean, sd, pca.components_[kept].T, spread[kept], rows, min(most, dimensions))

    def notes(self) -> list[str]:
        """How many components were left out, if any."""
        kept = len(self.spread)
        if kept == self.asked:
            return []
        return [
            f"{kept} of {self.asked} principal components are kept: along the others the "
            f"{self.rows} rows learnt from do not vary beyond rounding"
        ]

    def project(self, embedding: Floats) -> Doubles:
        """Rows (N, D) to their components (N, d) float64."""
        return np.asarray((embedding.astype(np.float64) - self.mean) / self.sd @ self.loadings)
