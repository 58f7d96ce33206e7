"""LISI: the effective number of groups in the neighbourhood of a row, and its summaries."""

import math
from typing import NamedTuple

import numpy as np

from deconfound.arrays import AnyCodes, AnyFloats, Doubles
from deconfound.errors import UserError
from deconfound.metrics.neighbors import NeighborGraph, neighbor_graph
from deconfound.metrics.score import Metric, Score

NEIGHBORS_PER_PERPLEXITY = 3
BISECTIONS = 50
ENTROPY_TOLERANCE = 1e-5
CHUNK_ROWS = 1024

LISI_ENVIRONMENT = Metric(
    "lisi_environment",
    better="higher",
    paper="Pernice et al., IST, section 5.3; Korsunsky et al. 2019",
    summary="mean LISI over environments / number of environments: 1 = perfectly mixed",
)
LISI_LABEL = Metric(
    "lisi_label",
    better="lower",
    paper="Pernice et al., IST, section 5.3; Korsunsky et al. 2019",
    summary="mean LISI over labels / number of labels: 1/labels = perfectly separated",
)
LISI_RATIO = Metric(
    "lisi_ratio",
    better="higher",
    range=(0.0, math.inf),
    paper="Pernice et al., IST, Table 1 (cLISI/bLISI, c = confounder, b = biology)",
    summary="lisi_environment / lisi_label: 1 = uninformative, ideal = number of labels",
)
ILISI = Metric(
    "ilisi",
    better="higher",
    paper="Luecken et al. 2022 (scIB)",
    summary="median LISI over environments, scaled so that 1 = perfectly mixed",
)
CLISI = Metric(
    "clisi",
    better="higher",
    paper="Luecken et al. 2022 (scIB); c = cell type, here the label",
    summary="median LISI over labels, scaled so that 1 = perfectly separated",
)


class LisiRatio(NamedTuple):
    """The LISI ratio of IST and its two factors."""

    ratio: Score
    environment: Score
    label: Score


def lisi(
    embedding: AnyFloats | NeighborGraph, groups: AnyCodes | AnyFloats, perplexity: float = 30.0
) -> Doubles:
    """Local inverse Simpson's index of every row (Korsunsky et al. 2019): 1 / sum_c p_c^2.

    `embedding` is (N, D) or its `neighbor_graph`. `groups` is (N,) or (N, columns), the latter
    sharing one set of neighbour weights; integer codes with -1 = missing, or floats with NaN =
    missing. Returns float64 of the shape of `groups`, from 1 to the number of groups; chance alone
    keeps the mean below that number (1.9 for two groups mixed at random).

    p_c is the weight of group c among the 3 x perplexity nearest other rows. The weights are
    proportional to exp(-beta d), d the Euclidean distance, not its square; beta is bisected (at
    most 50 times, to 1e-5 nats) until they have the given perplexity. With fewer than
    3 x perplexity other rows all of them are used. Neighbours of unknown group are left out of
    the p_c but keep their part in beta. NaN for a row of unknown group, without neighbours of
    known group, or whose nearest neighbour takes all weight (entropy 0; harmonypy 2.1 gives 0,
    scib-metrics -1). Deviation: distances are taken relative to the nearest one, which changes no
    weight but keeps them from all vanishing.

    Raises UserError on a malformed embedding, a graph with too few neighbours, or
    perplexity <= 1.
    """
    if perplexity <= 1:
        raise UserError(f"perplexity {perplexity} leaves no neighbourhood; give a number above 1")
    wanted = int(NEIGHBORS_PER_PERPLEXITY * perplexity)
    graph = embedding if isinstance(embedding, NeighborGraph) else neighbor_graph(embedding, wanted)
    k = max(min(wanted, len(graph) - 1), 0)
    if graph.k < k:
        raise UserError(
            f"the neighbour graph holds {graph.k} neighbours; LISI at perplexity {perplexity:g} "
            f"needs {k}: build it with neighbor_graph(embedding, k={wanted})"
        )
    codes = _codes(groups)
    if len(codes) != len(graph):
        raise UserError(f"{len(codes)} group codes for {len(graph)} rows; expected one per row")
    columns = codes.reshape(len(codes), -1)
    result = np.full(columns.shape, np.nan)
    if k:
        for start in range(0, len(graph), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            weights = _weights(graph.distances[rows, :k], perplexity)
            for column in range(columns.shape[1]):
                neighbors = columns[graph.indices[rows, :k], column]
                result[rows, column] = _inverse_simpson(weights, neighbors)
        result[columns < 0] = np.nan
    return result.reshape(codes.shape)


def lisi_ratio(
    lisi_environment: Doubles, lisi_label: Doubles, n_environments: int, n_labels: int
) -> LisiRatio:
    """cLISI/bLISI of Pernice et al., IST, Table 1, with both factors.

    (mean LISI over environments / their number) / (mean LISI over labels / their number), from
    per-row values (N,), NaN ignored. The paper gives no formula: this one follows its section 5.3,
    where the ideal factors are 1 and 1/|Y|. There c is the confounder and b the biology, the
    reverse of `clisi`. NaN where no row has a value.
    """
    environment = _mean_share(lisi_environment, n_environments, "environment")
    label = _mean_share(lisi_label, n_labels, "label")
    note = "; ".join(text for text in (environment.note, label.note) if text)
    ratio = Score(environment.value / label.value, min(environment.n, label.n), note)
    return LisiRatio(ratio, environment, label)


def ilisi(lisi_environment: Doubles, n_environments: int) -> Score:
    """scIB's batch mixing (Luecken et al. 2022): (median - 1) / (environments - 1), in [0, 1].

    `lisi_environment` (N,) are per-row values, NaN ignored. NaN with fewer than two environments.
    """
    median = _median(lisi_environment, n_environments, "environment")
    return median._replace(value=(median.value - 1) / max(n_environments - 1, 1))


def clisi(lisi_label: Doubles, n_labels: int) -> Score:
    """scIB's label purity (Luecken et al. 2022): (labels - median) / (labels - 1), in [0, 1].

    `lisi_label` (N,) are per-row values, NaN ignored. NaN with fewer than two labels.
    """
    median = _median(lisi_label, n_labels, "label")
    return median._replace(value=(n_labels - median.value) / max(n_labels - 1, 1))


def _mean_share(values: Doubles, groups: int, noun: str) -> Score:
    known = values[~np.isnan(values)]
    if not len(known):
        return Score(math.nan, 0, f"no row has a LISI over {noun}s")
    note = f"only one {noun}" if groups == 1 else ""
    return Score(float(known.mean()) / groups, len(known), note)


def _median(values: Doubles, groups: int, noun: str) -> Score:
    known = values[~np.isnan(values)]
    if not len(known):
        return Score(math.nan, 0, f"no row has a LISI over {noun}s")
    if groups < 2:
        return Score(math.nan, len(known), f"only one {noun}")
    return Score(float(np.median(known)), len(known))


def _codes(groups: AnyCodes | AnyFloats) -> AnyCodes:
    if np.issubdtype(groups.dtype, np.integer):
        return groups.astype(np.int64)
    missing = np.isnan(groups)
    codes = np.unique(groups, return_inverse=True)[1].reshape(groups.shape)
    return np.where(missing, -1, codes)


def _weights(distances: Doubles, perplexity: float) -> Doubles:
    """Neighbour weights (R, k) of the given perplexity; NaN where one neighbour takes them all."""
    beyond = distances - distances[:, :1]
    target = math.log(perplexity)
    beta = np.ones(len(beyond))
    lower, upper = np.zeros(len(beyond)), np.full(len(beyond), np.inf)
    weights = np.empty_like(beyond)
    searching = np.arange(len(beyond))
    for bisection in range(BISECTIONS + 1):
        far = beyond[searching]
        kernel = np.exp(-beta[searching, None] * far)
        total = kernel.sum(axis=1)
        mean = np.einsum("rk,rk->r", kernel, far) / total
        entropy = np.log(total) + beta[searching] * mean
        excess = entropy - target
        done = (np.abs(excess) < ENTROPY_TOLERANCE) | (bisection == BISECTIONS)
        weights[searching[done]] = kernel[done] / total[done, None]
        weights[searching[done & (entropy == 0)]] = np.nan
        searching, excess = searching[~done], excess[~done]
        if not len(searching):
            break
        wide, narrow = searching[excess > 0], searching[excess <= 0]
        lower[wide], upper[narrow] = beta[wide], beta[narrow]
        middle = (lower[searching] + upper[searching]) / 2
        beta[searching] = np.where(np.isinf(middle), 2 * beta[searching], middle)
    return weights


def _inverse_simpson(weights: Doubles, groups: AnyCodes) -> Doubles:
    """1 / sum_c p_c^2 per row of `weights` (R, k), over the neighbours with `groups` >= 0."""
    k = groups.shape[1]
    order = np.argsort(groups, axis=1)
    group = np.take_along_axis(groups, order, axis=1)
    weight = np.where(group >= 0, np.take_along_axis(weights, order, axis=1), 0.0)
    first = np.ones(group.shape, dtype=bool)
    first[:, 1:] = group[:, 1:] != group[:, :-1]
    starts = np.flatnonzero(first)
    mass = np.add.reduceat(weight.ravel(), starts)
    simpson = np.bincount(starts // k, weights=mass**2, minlength=len(groups))
    with np.errstate(invalid="ignore"):
        return np.asarray(weight.sum(axis=1) ** 2 / simpson)
