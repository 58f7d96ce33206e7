"""Scores of imputed images whose true images are known: distance, phenotype, hallucination.

Pernice et al., IST, 2023, eq. 1 imputes an image under do(C = c) and cannot score it, because no
cell is imaged twice. On a simulated screen the same cell can be rendered in both environments; the
measures of this file are ours. Read the distance and the phenotype together: an image left alone
keeps its phenotype, and an image changed too much may still come near the true one in pixels.
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from deconfound.arrays import ROUNDING, AnyFloats, Codes, Doubles, Floats, Images
from deconfound.metrics.score import Metric, Score

declared = partial(Metric, paper="ours, for eq. 1 of Pernice et al., IST, 2023")
REPLICATES = 2_000
CONFIDENT = 0.8
"""Least probability with which the oracle counts as sure of a label."""

IMPUTATION_ERROR = declared(
    "imputation_error",
    better="lower",
    range=(0.0, math.inf),
    summary="Σ|imputed − true| / Σ|source − true|: 0 = perfect, 1 = no better than left alone",
)
IMPUTATION_ERROR_LOW = declared(
    "imputation_error_low",
    better="context",
    range=(0.0, math.inf),
    summary="lower end of the error's 95 % bootstrap interval over wells, or rows without wells",
)
IMPUTATION_ERROR_HIGH = declared(
    "imputation_error_high",
    better="context",
    range=(0.0, math.inf),
    summary="upper end of the same interval",
)
IMPUTATION_SQUARED_ERROR = declared(
    "imputation_squared_error",
    better="lower",
    range=(0.0, math.inf),
    summary="Σ(imputed − true)² / Σ(source − true)²: 0 = perfect, 1 = no better than left alone",
)
IMPUTATION_LABEL_PROBABILITY = declared(
    "imputation_label_probability",
    better="higher",
    summary="an oracle's mean probability of the cell's label on imputed images",
)
IMPUTATION_LABEL_PROBABILITY_TRUE = declared(
    "imputation_label_probability_true",
    better="context",
    summary="the same on the true images: what a perfect imputer reaches",
)
IMPUTATION_AGREEMENT = declared(
    "imputation_agreement",
    better="higher",
    summary="share of imputed images that the oracle gives the label it gives the true image",
)
IMPUTATION_HALLUCINATION = declared(
    "imputation_hallucination",
    better="lower",
    summary="share of cells whose imputed image the oracle is sure to be of another label "
    f"(p ≥ {CONFIDENT}), among those whose true image it gives the right one",
)


class RelativeError(NamedTuple):
    """Distance from the true images over that of images left alone, and its 95 % interval."""

    score: Score
    low: float
    """NaN where there are fewer than two units to resample."""
    high: float


def absolute_distance(image: Images, true: Images) -> Doubles:
    """Σ|image − true| over the pixels of each channel: (N, C, H, W) twice to (N, C), in [0, ∞).

    Any numeric dtype, one unit.
    """
    difference = np.abs(image.astype(np.float64) - true.astype(np.float64))
    return np.asarray(difference.sum(axis=(2, 3)))


def squared_distance(image: Images, true: Images) -> Doubles:
    """Σ(image − true)² over the pixels of each channel: (N, C, H, W) twice to (N, C), in [0, ∞).

    Any numeric dtype, one unit.
    """
    difference = np.square(image.astype(np.float64) - true.astype(np.float64))
    return np.asarray(difference.sum(axis=(2, 3)))


def relative_error(
    imputed: AnyFloats, alone: AnyFloats, unit: Codes | None = None, seed: int = 0
) -> RelativeError:
    """Σ imputed / Σ alone over all rows, in [0, ∞): 0 is perfect, 1 no better than left alone.

    `imputed` and `alone` (N,) are distances of the imputed and of the source images from the true
    ones. The 95 % percentile interval comes from 2,000 draws, by `seed`, of as many units as there
    are, with replacement; `unit` (N,) int64 says which rows belong together, each alone if None.
    NaN where every source is the true image already, or there is no row.
    """
    rows = len(alone)
    if not rows:
        return RelativeError(Score(math.nan, 0, "no row to impute"), math.nan, math.nan)
    if not alone.any():
        note = "every image is the true one already, so there is nothing to impute"
        return RelativeError(Score(math.nan, rows, note), math.nan, math.nan)
    from deconfound.runtime.seeds import numpy_stream

    value = float(imputed.sum() / alone.sum())
    _, code = np.unique(np.arange(rows) if unit is None else unit, return_inverse=True)
    sums = np.stack([np.bincount(code, weights=one) for one in (imputed, alone)], axis=1)
    units = len(sums)
    if units < 2:
        return RelativeError(Score(value, rows, "one unit, no interval"), math.nan, math.nan)
    stream = numpy_stream(seed, "imputation bootstrap")
    drawn = stream.multinomial(units, np.full(units, 1 / units), REPLICATES) @ sums
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return RelativeError(Score(value, rows), float(low), float(high))


def label_probability(probability: AnyFloats, label: Codes) -> Score:
    """Mean probability of the own label, in [0, 1]; rows without a label (−1) are left out.

    `probability` (N, K) of an oracle, rows summing to 1; `label` (N,) int64. NaN if no row has a
    label.
    """
    known = np.flatnonzero(label >= 0)
    if not len(known):
        return Score(math.nan, 0, "no row has a label of training")
    return Score(float(probability[known, label[known]].mean()), len(known))


def label_agreement(imputed: AnyFloats, true: AnyFloats) -> Score:
    """Share of rows whose likeliest label is the same in both, in [0, 1].

    `imputed` and `true` (N, K) are an oracle's probabilities on imputed and true images. NaN if
    there is no row.
    """
    if not len(true):
        return Score(math.nan, 0, "no row to impute")
    return Score(float((imputed.argmax(axis=1) == true.argmax(axis=1)).mean()), len(true))


def hallucination_rate(
    imputed: AnyFloats, true: AnyFloats, label: Codes, confident: float = CONFIDENT
) -> Score:
    """Share of images on which imputation shows a phenotype that the cell does not have, in [0, 1].

    Counted are the rows whose true image the oracle gives the cell's own label: their phenotype can
    be seen in the target environment, so only the imputation can have changed it. Such an image is
    hallucinated if another label has the probability `confident` or more on the imputed image; a
    phenotype that has merely faded, so that no label is that probable, is not. `n` is the number of
    rows counted. `imputed` and `true` (N, K) are the oracle's probabilities, `label` (N,) int64, −1
    for rows without a label, which are left out. NaN if no row is counted.
    """
    known = label >= 0
    right = known & (true.argmax(axis=1) == label)
    if not right.any():
        return Score(math.nan, 0, "the oracle is right on no true image")
    other = imputed[right].copy()
    other[np.arange(len(other)), label[right]] = 0
    rate = float((other.max(axis=1) >= confident).mean())
    return Score(rate, int(right.sum()), f"the oracle is right on {right[known].mean():.0%} of "
                 "the true images, which are counted")  # fmt: skip


def matched_moments(source: Images, style: Images) -> Floats:
    """The source images with the mean and sd of each channel of the style images, float32.

    (N, C, H, W) and (N, K, C, H, W), in one unit, to (N, C, H, W). Nothing is fitted, so any
    imputer must beat it. Means and sds of the K style images of a row are averaged. A channel of
    `source` that does not vary takes the mean of `style`. Reinhard et al., Color Transfer between
    Images, 2001, eq. 10-11, per channel instead of in lαβ.
    """
    source, style = source.astype(np.float64), style.astype(np.float64)
    mean, sd = (of(source, axis=(2, 3), keepdims=True) for of in (np.mean, np.std))
    of_style, wanted = (
        of(style, axis=(3, 4), keepdims=True).mean(axis=1) for of in (np.mean, np.std)
    )
    varies = sd > ROUNDING * np.abs(mean)
    scale = np.divide(wanted, sd, out=np.zeros_like(sd), where=varies)
    return np.asarray((source - mean) * scale + of_style, dtype=np.float32)
