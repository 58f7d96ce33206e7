"""Symphony: training rows are corrected by Harmony, and new rows mapped onto them."""

from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Codes, Doubles, Floats
from deconfound.methods.contract.post_hoc import Controls, PostHoc
from deconfound.methods.post_hoc.harmony import BANDWIDTH, HarmonyOptions, harmonise, run_harmony
from deconfound.methods.post_hoc.pca import Components

RIDGE = 1.0
"""Ridge penalty on the terms of environments; the intercept has none."""


class Symphony(PostHoc):
    """Symphony: Kang et al. 2021, "Symphony mapping". New rows do not change the reference.

    As the rows are features of a network, no genes are selected (topn is the number of dimensions,
    as in Pernice et al., IST, section 5.2) and nothing is log-normalised.
    """

    Options = HarmonyOptions
    options: HarmonyOptions
    ADAPTS = True
    SUMMARY = "Harmony of the training rows; rows of any other environment are mapped onto it"
    PAPER = "Kang et al., Efficient and precise … reference atlas mapping with Symphony, 2021"

    components: Components
    reference: "Reference"

    @classmethod
    def require(cls) -> None:
        """Raise UserError where harmonypy is not installed."""
        run_harmony("symphony")

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Build the reference from rows (N, D); returns them corrected by Harmony, (N, d).

        Rows without an environment (−1) are not in the reference, but mapped onto it. Raises
        UserError for fewer than two environments, rows that do not vary, and where harmonypy is not
        installed.
        """
        del control
        known = environment >= 0
        self.components = Components.of(embedding[known], self.options.components)
        found = harmonise(
            self.components.project(embedding[known]), environment[known], self.options, "symphony"
        )
        self.reference = Reference.of(found.corrected, found.assignment)
        corrected = np.empty((len(embedding), found.corrected.shape[1]), dtype=np.float32)
        corrected[known] = found.corrected
        corrected[~known] = self.transform(embedding[~known], environment[~known])
        return corrected

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Map rows (Q, D): (Q, d) float32; those of one environment are corrected together."""
        del control
        projected = self.components.project(embedding)
        return self.reference.map(projected, environment).astype(np.float32)

    def notes(self) -> list[str]:
        """The components left out."""
        return self.components.notes()


@dataclass(frozen=True)
class Reference:
    """The clusters of a reference; its rows are not kept."""

    centroids: Doubles
    """(K, d), of length 1."""
    size: Doubles
    """(K,) N_k: sum of the assignments to each cluster."""
    total: Doubles
    """(K, d) C_k: sum of the corrected rows, weighted by their assignment to each cluster."""

    @classmethod
    def of(cls, corrected: Doubles, assignment: Doubles) -> "Reference":
        """The reference of corrected rows (N, d) with soft clusters (N, K)."""
        total = assignment.T @ corrected
        return cls(unit_length(total), assignment.sum(axis=0), total)

    def map(self, values: Doubles, environment: Codes) -> Doubles:
        """Rows (Q, d) of environments (Q,) int64 onto the reference: (Q, d) float64.

        In each cluster k the rows are regressed on an intercept and one term for each environment,
        weighted by their assignment, with the reference in the intercept alone: N_k rows of sum
        C_k. The terms w of the environments, whose ridge is 1, are subtracted. With n and s the
        weighted count and sum of an environment, the normal equations give
        w = (s − n·a) / (n + 1) and the intercept a = (C_k + Σ s/(n + 1)) / (N_k + Σ n/(n + 1)).
        A row of unknown environment (−1) keeps its place and counts in no term.
        """
        assignment = self.assign(values)
        known = np.unique(environment[environment >= 0])
        counts = np.array([assignment[environment == e].sum(axis=0) for e in known])
        sums = np.array([assignment[environment == e].T @ values[environment == e] for e in known])
        if not len(known):
            return values.copy()
        shrunk = counts + RIDGE
        upper = self.total + (sums * RIDGE / shrunk[..., None]).sum(axis=0)
        lower = self.size + (counts * RIDGE / shrunk).sum(axis=0)
        intercept = upper / lower[:, None]
        terms = (sums - counts[..., None] * intercept) / shrunk[..., None]
        mapped = values.copy()
        for number, one in enumerate(known):
            inside = environment == one
            mapped[inside] -= assignment[inside] @ terms[number]
        return mapped

    def assign(self, values: Doubles) -> Doubles:
        """Soft clusters (Q, K) of rows (Q, d): softmax of −2(1 − cosine) / 0.1."""
        logits = -2 * (1 - unit_length(values) @ self.centroids.T) / BANDWIDTH
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def unit_length(values: Doubles) -> Doubles:
    """Rows (N, d) divided by their length; a row of zeros stays."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(length == 0, 1.0, length))
