"""PCA: the leading principal components of standardised features."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from deconfound.arrays import Codes, Doubles, Floats
from deconfound.methods.contract.post_hoc import Controls, PostHoc, PostHocOptions, centre_and_scale


class PcaOptions(PostHocOptions):
    """Options of PCA."""

    components: int = Field(64, ge=1)
    """Principal components of the standardised features that are kept; all if there are fewer."""


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
        """Learn mean, sd and loadings of rows (N, D); returns their components (N, d)."""
        self.components = Components.of(embedding, self.options.components)
        return self.transform(embedding, environment, control)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Components (Q, d) float32 of rows (Q, D)."""
        del environment, control
        return self.components.project(embedding).astype(np.float32)


@dataclass(frozen=True)
class Components:
    """Standardisation and principal components, fitted on some rows."""

    mean: Doubles
    """(D,)."""
    sd: Doubles
    """(D,); 1 where a dimension does not vary."""
    loadings: Doubles
    """(D, d), orthonormal."""

    @classmethod
    def of(cls, embedding: Floats, most: int) -> "Components":
        """Fitted on rows (N, D); at most `most` components."""
        from sklearn.decomposition import PCA

        mean, sd = centre_and_scale(embedding)
        count = min(most, *embedding.shape)
        pca = PCA(count, svd_solver="covariance_eigh").fit((embedding - mean) / sd)
        return cls(mean, sd, pca.components_.T)

    def project(self, embedding: Floats) -> Doubles:
        """Rows (N, D) to their components (N, d) float64."""
        return np.asarray((embedding.astype(np.float64) - self.mean) / self.sd @ self.loadings)
