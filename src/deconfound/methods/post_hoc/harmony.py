"""Harmony: embeddings moved, cluster by cluster, until every cluster mixes the environments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from deconfound.arrays import Codes, Doubles, Floats
from deconfound.errors import UserError
from deconfound.methods.contract.post_hoc import Controls, PostHoc, PostHocOptions, refuse_unknown
from deconfound.methods.post_hoc.pca import Components
from deconfound.runtime.seeds import derived_seed

BANDWIDTH = 0.1
"""Sigma of the soft assignment to clusters, of Harmony and of Symphony."""


class HarmonyOptions(PostHocOptions):
    """Options of Harmony, and of the reference of Symphony."""

    components: int = Field(20, ge=1)
    """Principal components of the standardised embedding that are kept; fewer where the rows learnt
    from do not span as many."""
    theta: float = Field(2.0, ge=0)
    """Penalty on clusters that do not mix the environments."""
    clusters: int | None = Field(None, ge=2)
    """Soft clusters; if not given one for every 30 rows, at least 2 and at most 100."""
    iterations: int = Field(10, ge=1)
    """Most rounds of clustering and correction."""
    seed: int = 0
    """Seed of the first clusters."""


class Harmony(PostHoc):
    """Harmony by harmonypy: Korsunsky et al. 2019, algorithms 1 to 3. It maps no new rows.

    The embedding is standardised and reduced to principal components first. The options are passed
    on to harmonypy, whose defaults hold for everything else; its versions differ in numbers.
    """

    Options = HarmonyOptions
    options: HarmonyOptions
    SUMMARY = "mixes environments cluster by cluster; refitted on all rows, held-out ones too"
    PAPER = "Korsunsky et al., Fast, sensitive and accurate integration … with Harmony, 2019"
    MAPS = False

    components: Components

    @classmethod
    def require(cls) -> None:
        """Raise UserError where harmonypy is not installed."""
        run_harmony("harmony")

    def fit(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """All rows (N, D) of environments (N,), corrected: (N, d) float32.

        Raises UserError for a row without an environment, fewer than two environments, rows that do
        not vary, and where harmonypy is not installed.
        """
        del control
        refuse_unknown(environment, "harmony", "symphony")
        self.components = Components.of(embedding, self.options.components)
        found = harmonise(self.components.project(embedding), environment, self.options, "harmony")
        return found.corrected.astype(np.float32)

    def transform(self, embedding: Floats, environment: Codes, control: Controls = None) -> Floats:
        """Raises UserError: Harmony cannot map rows that it was not fitted on."""
        del embedding, environment, control
        raise UserError("harmony: cannot map rows that it was not fitted on; use symphony")

    def notes(self) -> list[str]:
        """The components left out."""
        return self.components.notes()


@dataclass(frozen=True)
class Harmonised:
    """Rows corrected by Harmony."""

    corrected: Doubles
    """(N, d)."""
    assignment: Doubles
    """(N, K) soft clusters; each row sums to 1."""


def harmonise(
    values: Doubles, environment: Codes, options: HarmonyOptions, method: str
) -> Harmonised:
    """Harmony of the rows (N, d) of environments (N,) int64.

    Raises UserError, in the name of `method`, for fewer than two environments and where harmonypy
    is not installed.
    """
    found = len(np.unique(environment))
    if found < 2:
        raise UserError(
            f"{method}: the rows to learn from have {found} environment; expected 2 or more"
        )
    clusters = options.clusters or int(np.clip(round(len(values) / 30), 2, 100))
    result = run_harmony(method)(
        values,
        {"environment": environment},
        ["environment"],
        theta=options.theta,
        sigma=BANDWIDTH,
        nclust=clusters,
        max_iter_harmony=options.iterations,
        verbose=False,
        random_state=derived_seed(options.seed, "harmony") % 2**31,
    )
    return rows_first(result, values)


def run_harmony(method: str) -> Callable[..., Any]:
    """`harmonypy.run_harmony`; raises UserError, in the name of `method`, if not installed."""
    try:
        import harmonypy
    except ImportError as error:
        raise UserError(
            f"{method} needs the extra [harmony]: pip install 'deconfound[harmony]' ({error})"
        ) from error
    found: Callable[..., Any] = harmonypy.run_harmony
    return found


def rows_first(result: Any, values: Doubles) -> Harmonised:
    """A result of harmonypy with a row for each row of `values`; before 0.1 it had columns."""
    original = np.asarray(result.Z_orig, dtype=np.float64)
    corrected, assignment = np.asarray(result.Z_corr), np.asarray(result.R)
    as_given = original.shape == values.shape and np.allclose(original, values, 1e-3, 1e-3)
    if not as_given:
        corrected, assignment = corrected.T, assignment.T
    return Harmonised(corrected.astype(np.float64), assignment.astype(np.float64))
