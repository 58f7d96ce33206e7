"""Alarms for a contrastive embedding that has collapsed to a point."""

import math

import numpy as np

from deconfound.arrays import AnyFloats
from deconfound.metrics.score import Metric, Score

ALARM_RESULTANT = 0.99
ALARM_SUPCON = 0.01

MEAN_RESULTANT_LENGTH = Metric(
    "mean_resultant_length",
    better="lower",
    paper="Mardia & Jupp 2000, chapter 9, for the z of Makino et al., SCBD, section 2",
    summary="length of the mean of the unit vectors: 1 when all embeddings point the same way",
)
SUPCON_COLLAPSE = Metric(
    "supcon_collapse",
    better="lower",
    range=(0.0, math.inf),
    paper="Makino et al., SCBD, section 2; Khosla et al. 2020, eq. 2",
    summary="supervised contrastive loss over its value when all embeddings coincide",
)


def mean_resultant_length(z: AnyFloats) -> Score:
    """|mean of z_i / |z_i||, in [0, 1], for embeddings `z` (N, D) of any float dtype.

    From 0.99 on the note says that the embedding has collapsed. Rows of length zero have no
    direction and are left out; NaN if no row remains.
    """
    length = np.linalg.norm(z.astype(np.float64), axis=1)
    pointed = length > 0
    rows = int(pointed.sum())
    if not rows:
        return Score(math.nan, 0, "every embedding is zero")
    value = float(np.linalg.norm((z[pointed] / length[pointed, None]).mean(axis=0)))
    if value < ALARM_RESULTANT:
        return Score(value, rows)
    return Score(value, rows, "collapsed: all embeddings point the same way; lower alpha")


def supcon_against_collapse(value: float, batch_size: int, include_self: bool = True) -> Score:
    """A supervised contrastive loss divided by its value at full collapse.

    `value` is the mean over anchors in nats, `batch_size` the B it was computed on. With all
    embeddings equal the loss is log B if the softmax denominator includes the anchor itself and
    log(B - 1) if not, provided every anchor has a positive. Within 1 % of 1 the note says that the
    embedding has collapsed. NaN if the value at collapse is 0.
    """
    reference = math.log(batch_size if include_self else batch_size - 1) if batch_size > 1 else 0.0
    if reference == 0.0:
        return Score(math.nan, batch_size, f"a batch of {batch_size} has no collapsed value")
    ratio = value / reference
    if abs(ratio - 1) > ALARM_SUPCON:
        return Score(ratio, batch_size)
    return Score(ratio, batch_size, "collapsed: the loss equals that of a single point")
