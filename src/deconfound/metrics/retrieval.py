"""Retrieval: how profiles of one perturbation, or of one target, rank before all others."""

import math
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from deconfound.arrays import AnyCodes, AnyFloats, Codes, Doubles, Mask
from deconfound.errors import UserError
from deconfound.metrics.neighbors import refuse_malformed
from deconfound.metrics.score import Metric, Score

Form = Literal["activity", "consistency", "cross_batch"]
PAPER = "Kalinin et al. 2025, A versatile information retrieval framework (copairs)"
MOST_PROFILES = 20_000
"""The number of pairs grows with the square of the profiles."""


def _metrics(form: Form, what: str) -> tuple[Metric, Metric]:
    return (
        Metric(
            f"retrieval_{form}_map",
            better="higher",
            paper=PAPER,
            summary=f"mean average precision with which {what}",
        ),
        Metric(
            f"retrieval_{form}_share",
            better="higher",
            paper=PAPER,
            summary=f"share of groups, Benjamini-Hochberg q below 0.05, of which {what}",
        ),
    )


ACTIVITY_MAP, ACTIVITY_SHARE = _metrics(
    "activity", "profiles of a perturbation find each other before controls"
)
CONSISTENCY_MAP, CONSISTENCY_SHARE = _metrics(
    "consistency", "perturbations of a target find each other before those of other targets"
)
CROSS_BATCH_MAP, CROSS_BATCH_SHARE = _metrics(
    "cross_batch", "profiles of a perturbation in different environments do before controls"
)


@dataclass(frozen=True)
class Retrieval:
    """Values for every perturbation or target (a group) that has two profiles to compare."""

    group: Codes
    """(G,) codes."""
    mean_average_precision: Doubles
    """(G,) in [0, 1]."""
    p_value: Doubles
    """(G,) against rankings drawn at random: (#null > mAP + 1) / (draws + 1)."""
    corrected_p_value: Doubles
    """(G,) after Benjamini and Hochberg."""
    note: str = ""
    """Why there is no group."""

    def mean(self) -> Score:
        """Mean over the groups; NaN where there is none."""
        if not len(self.group):
            return Score(math.nan, 0, self.note)
        return Score(float(self.mean_average_precision.mean()), len(self.group))

    def share(self) -> Score:
        """Share of the groups whose corrected p-value is below 0.05."""
        if not len(self.group):
            return Score(math.nan, 0, self.note)
        return Score(float((self.corrected_p_value < 0.05).mean()), len(self.group))


def profile_retrieval(
    embedding: AnyFloats,
    perturbation: AnyCodes,
    control: Mask,
    form: Form = "activity",
    *,
    environment: AnyCodes | None = None,
    target: AnyCodes | None = None,
    null_size: int = 10_000,
    seed: int = 0,
) -> Retrieval:
    """Mean average precision by copairs: Kalinin et al. 2025.

    `embedding` (N, D) float, a row a profile; `perturbation`, `environment`, `target` (N,) codes
    with −1 = missing, `control` (N,) bool. Profiles are ranked by cosine.

    - activity: those of the same perturbation against controls.
    - cross_batch: the same, and the positives lie in other environments than the query.
    - consistency: other perturbations of the same target against those of other targets; controls
      take no part.

    Raises UserError without copairs, on a malformed embedding and on more than 20,000 profiles.
    """
    refuse_malformed(embedding)
    copairs = load_copairs()
    if len(embedding) > MOST_PROFILES:
        raise UserError(
            f"retrieval: {len(embedding):,} profiles, whose pairs grow with the square; expected "
            f"{MOST_PROFILES:,} at most, aggregate cells first or name fewer parts"
        )
    profiles = pd.DataFrame({"perturbation": perturbation, "control": control.astype(int)})
    if form == "cross_batch":
        profiles["environment"] = _needed(environment, form, "environments")
    if form == "consistency":
        profiles["target"] = _needed(target, form, "targets")
    kept = (profiles.drop(columns="control") >= 0).all(axis=1) | (control & (form == "activity"))
    if form == "consistency":
        kept &= ~control
    profiles, values = profiles[kept].reset_index(drop=True), embedding[kept.to_numpy()]
    group = "target" if form == "consistency" else "perturbation"
    apart = {"activity": [], "cross_batch": ["environment"], "consistency": ["perturbation"]}[form]
    unlike = ["target"] if form == "consistency" else ["perturbation", "control"]
    lacking = _lacking(profiles, group, apart, form)
    if lacking:
        nothing = np.empty(0)
        return Retrieval(np.empty(0, np.int64), nothing, nothing, nothing, lacking)
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision = copairs.average_precision(
            profiles, values, [group], apart, [], unlike, distance="cosine", progress_bar=False
        )
        precision = precision[(precision["control"] == 0) & precision["average_precision"].notna()]
        found = copairs.mean_average_precision(
            precision, [group], null_size, 0.05, seed, progress_bar=False, max_workers=1,
            cache_dir=cache,
        )  # fmt: skip
    return Retrieval(
        found[group].to_numpy(dtype=np.int64),
        found["mean_average_precision"].to_numpy(dtype=np.float64),
        found["p_value"].to_numpy(dtype=np.float64),
        found["corrected_p_value"].to_numpy(dtype=np.float64),
    )


def load_copairs() -> Any:
    """The module copairs.map; raises UserError where it is not installed."""
    try:
        import copairs.map
    except ImportError as error:
        raise UserError(
            f"retrieval needs the extra [retrieval]: pip install 'deconfound[retrieval]' ({error})"
        ) from error
    return copairs.map


def _needed(codes: AnyCodes | None, form: Form, what: str) -> AnyCodes:
    if codes is None:
        raise UserError(f"retrieval: {form} needs {what}")
    return codes


def _lacking(profiles: pd.DataFrame, group: str, apart: list[str], form: Form) -> str:
    treated = profiles[profiles["control"] == 0]
    of_group = treated.groupby(group)
    several = of_group[apart[0]].nunique() if apart else of_group.size()
    if not (several > 1).any():
        unit = {"activity": "profiles", "cross_batch": "environments"}.get(form, "perturbations")
        return f"no {group} has two {unit}"
    if form == "consistency":
        return "" if treated["target"].nunique() > 1 else "there is one target alone"
    return "" if len(treated) < len(profiles) else "there are no controls"
