"""Where an imputed image came from, as a fresh probe reads it from intensity and texture.

An image imputed under do(C = c) (Pernice et al., IST, 2023, eq. 1) should look as if taken in c. If
its source can still be read, a shortcut from source to label survives the imputation.
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from deconfound.arrays import ROUNDING, AnyFloats, Codes, Doubles, Images
from deconfound.metrics.probe import linear_probe
from deconfound.metrics.score import Metric, Score
from deconfound.runtime.seeds import numpy_stream

declared = partial(Metric, paper="ours, for eq. 1 of Pernice et al., IST, 2023")
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BANDS = 8
"""Rings of spatial frequency, of equal width in octaves."""
FAINTEST = 1e-6
"""Share of a channel's power below which the rings of a spectrum are alike."""
FOLDS = 5
"""Parts of the wells; each is read by a probe of the others."""

IMPUTATION_SOURCE_ENVIRONMENT = declared(
    "imputation_source_environment",
    better="lower",
    summary="balanced accuracy with which a probe reads the environment an image was imputed from: "
    "compare with the images rendered exactly",
)
IMPUTATION_SOURCE_ENVIRONMENT_CHANCE = declared(
    "imputation_source_environment_chance",
    better="context",
    summary="one over the number of source environments",
)
IMPUTATION_SOURCE_LEVEL = declared(
    "imputation_source_level",
    better="lower",
    summary="the same of the group of the outermost level that an image was imputed from",
)
IMPUTATION_SOURCE_LEVEL_CHANCE = declared(
    "imputation_source_level_chance",
    better="context",
    summary="one over the number of these groups",
)


class SourceReading(NamedTuple):
    """How well the source is read, and how well by chance."""

    accuracy: Score
    chance: Score


def image_features(images: Images) -> Doubles:
    """What intensity and texture of each image are, (N, C, H, W) in any unit to (N, D) float64.

    Of each channel: 7 percentiles, mean, sd and skewness, and the logarithms of the power, as a
    share of the channel's, in 8 rings of spatial frequency (fewer in images so small that some hold
    no frequency). Of each pair of channels: their correlation. Nothing is fitted, so the numbers
    favour no imputer. A channel that does not vary has skewness, correlations and power 0.
    """
    pixels = images.reshape(*images.shape[:2], -1).astype(np.float64)
    mean, sd = pixels.mean(axis=2), pixels.std(axis=2)
    varies = sd > ROUNDING * np.abs(mean)
    scale = np.divide(1, sd, out=np.zeros_like(sd), where=varies)
    standard = (pixels - mean[..., None]) * scale[..., None]
    correlation = np.einsum("nap,nbp->nab", standard, standard) / pixels.shape[2]
    first, second = np.triu_indices(images.shape[1], 1)
    percentiles = np.moveaxis(np.percentile(pixels, PERCENTILES, axis=2), 0, 2)
    of_channels = [percentiles, mean[..., None], sd[..., None], _skewness(standard)]
    of_channels.append(_spectrum(standard.reshape(images.shape)))
    flat = np.concatenate(of_channels, axis=2).reshape(len(images), -1)
    return np.concatenate([flat, correlation[:, first, second]], axis=1)


def source_reading(features: AnyFloats, source: Codes, unit: Codes, seed: int = 0) -> SourceReading:
    """Balanced accuracy with which linear probes read the source of images, in [0, 1].

    `features` (N, D) come from `image_features`; `source` (N,) int64 says where each image was
    imputed from, −1 where that is unknown; `unit` (N,) int64, the well. Units are dealt by `seed`
    into 5 parts, those of one source into different ones; images of a part are read by a
    `linear_probe` of the other parts, so no image is read by its neighbours in a well. If no source
    has two units every image is one. Rows of a source that the other parts lack are not counted;
    chance is one over the number of sources counted. NaN, with the reason, where fewer than two
    sources can be read, a feature is not finite, or a probe does not converge.
    """
    known = np.flatnonzero(source >= 0)
    features, source, unit = features[known], source[known], unit[known]
    if not np.isfinite(features).all():
        return _undefined("images hold pixels that are no finite number")
    pairs = np.unique(np.column_stack([source, unit]), axis=0)
    notes = []
    if len(pairs) == len(np.unique(source)):
        notes = ["no source has two wells, so cells of one well read each other"]
        unit = np.arange(len(source))
    part = _parts(source, unit, seed)
    answer = np.full(len(source), -1, dtype=np.int64)
    for one in np.unique(part):
        inside = part == one
        readable = inside & np.isin(source, source[~inside])
        if not readable.any() or len(np.unique(source[~inside])) < 2:
            continue
        probe = linear_probe(features, source, ~inside, readable)
        if not len(probe.predicted):
            return _undefined(probe.note)
        answer[readable] = probe.predicted
    read = answer >= 0
    classes = np.unique(source[read])
    if len(classes) < 2:
        return _undefined("fewer than two sources to tell apart")
    if not read.all():
        notes.append(f"{(~read).sum()} of {len(read)} rows are of a source seen in one well alone")
    right = (answer == source)[read]
    value = float(np.mean([right[source[read] == one].mean() for one in classes]))
    score = Score(value, int(read.sum()), "; ".join(notes))
    return SourceReading(score, Score(1 / len(classes), score.n))


def _skewness(standard: Doubles) -> Doubles:
    """(N, C, pixels), standardised, to (N, C, 1)."""
    return np.asarray((standard**3).mean(axis=2, keepdims=True))


def _spectrum(standard: Doubles) -> Doubles:
    """Logarithms of the mean power in rings of frequency: (N, C, H, W) to (N, C, rings)."""
    height, width = standard.shape[2:]
    power = np.abs(np.fft.rfft2(standard)) ** 2 / (height * width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    lowest, highest = 1 / max(height, width), 0.5 * math.sqrt(2)
    octaves = np.log2(np.maximum(frequency, lowest / 2) / lowest)
    ring = np.floor(octaves / np.log2(highest / lowest) * BANDS).clip(max=BANDS - 1)
    rings = [one for one in range(BANDS) if (ring == one).any()]
    means = np.stack([power[:, :, ring == one].mean(axis=2) for one in rings], axis=2)
    return np.log(means + FAINTEST) - math.log(FAINTEST)


def _parts(source: Codes, unit: Codes, seed: int) -> Codes:
    """(N,) the part of each row: its unit's, which are dealt source by source, in random order."""
    units, code = np.unique(unit, return_inverse=True)
    first = source[np.unique(code, return_index=True)[1]]
    shuffled = numpy_stream(seed, "source probe").permutation(len(units))
    order = np.lexsort((shuffled, first))
    part = np.empty(len(units), dtype=np.int64)
    part[order] = np.arange(len(units)) % FOLDS
    return part[code]


def _undefined(reason: str) -> SourceReading:
    nothing = Score(math.nan, 0, reason)
    return SourceReading(nothing, nothing)
