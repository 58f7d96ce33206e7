"""kNN BatchCV: labels predicted from the nearest neighbours in other environments."""

import math
from typing import NamedTuple

import numpy as np

from deconfound.arrays import AnyCodes, AnyFloats, Codes, Mask
from deconfound.errors import UserError
from deconfound.metrics.accuracy import macro_f1, seen_in_training
from deconfound.metrics.neighbors import NeighborGraph, nearest, refuse_malformed, vote
from deconfound.metrics.score import Metric, Score

KNN_BATCH_CV = Metric(
    "knn_batch_cv",
    better="higher",
    paper="Pernice et al., IST, section 5.3 and Table 1 (kNN BatchCV)",
    summary="macro-F1 of a kNN vote of the other environments, averaged over environments",
)


class KnnBatchCV(NamedTuple):
    """The mean over environments, and the macro-F1 of each environment by its code."""

    mean: Score
    per_environment: dict[int, Score]


def knn_batch_cv(
    embedding: AnyFloats,
    label: AnyCodes,
    environment: AnyCodes,
    is_reference: Mask,
    is_query: Mask,
    *,
    k: int = 5,
    graph: NeighborGraph | None = None,
) -> KnnBatchCV:
    """Macro-F1 of a k-nearest-neighbour vote across environments (Pernice et al., IST, 5.3).

    For each environment the reference is the training rows of the other environments and the
    queries are the held-out rows of this one; classes on both sides are scored, and the scores
    averaged over environments. `embedding` (N, D) float, `label` and `environment` (N,) codes
    with -1 = missing (such rows take no part), `is_reference` and `is_query` (N,) bool. Votes are
    unweighted; a tie goes to the tied class with the nearest neighbour. A reference of fewer than
    k rows votes whole. The embedding itself may have been trained on every environment: this is
    not a test of generalisation to new ones.

    The paper leaves k open; 5 is the default of Symphony's label transfer, its kNN baseline.
    `graph`, the `neighbor_graph` of the same rows, saves the search for every query that has k
    reference rows among its neighbours; the other queries are searched exactly. The scores are
    the same with and without it. NaN, with the reason, where nothing can be scored. Raises
    UserError on a malformed embedding, k < 1, or a graph of other rows.
    """
    refuse_malformed(embedding)
    if k < 1:
        raise UserError(f"k = {k} neighbours cannot vote; give 1 or more")
    if graph is not None and len(graph) != len(embedding):
        raise UserError(
            f"the neighbour graph has {len(graph)} rows and the embedding {len(embedding)}; "
            "build the graph from this embedding"
        )
    known = (label >= 0) & (environment >= 0)
    per_environment: dict[int, Score] = {}
    for held_out in np.unique(environment[known & is_query]):
        reference = np.flatnonzero(known & is_reference & (environment != held_out))
        query = np.flatnonzero(known & is_query & (environment == held_out))
        if len(reference):
            chosen = _reference_neighbors(embedding, reference, query, k, graph)
            seen = seen_in_training(label[query], label[reference])
            score = macro_f1(label[query], vote(label[chosen]), seen)
        else:
            score = Score(math.nan, 0, "no training rows in the other environments")
        per_environment[int(held_out)] = score
    return KnnBatchCV(_mean(per_environment), per_environment)


def _reference_neighbors(
    embedding: AnyFloats, reference: Codes, query: Codes, k: int, graph: NeighborGraph | None
) -> Codes:
    """Row numbers (Q, k) of the reference rows nearest to each query row, nearest first."""
    k = min(k, len(reference))
    chosen = np.empty((len(query), k), np.int64)
    served = np.zeros(len(query), dtype=bool)
    if graph is not None and graph.k >= k:
        allowed = np.zeros(len(embedding), dtype=bool)
        allowed[reference] = True
        neighbors = graph.indices[query]
        hit = allowed[neighbors]
        served = hit.sum(axis=1) >= k
        order = np.argsort(~hit, axis=1, kind="stable")[:, :k]
        chosen[served] = np.take_along_axis(neighbors, order, axis=1)[served]
    rest = ~served
    if rest.any():
        found, _ = nearest(embedding[reference], embedding[query[rest]], k)
        chosen[rest] = reference[found]
    return chosen


def _mean(scores: dict[int, Score]) -> Score:
    defined = [score for score in scores.values() if not math.isnan(score.value)]
    if not defined:
        return Score(math.nan, 0, "no environment has query rows whose class others contain")
    rows = sum(score.n for score in defined)
    value = float(np.mean([score.value for score in defined]))
    partial = sum(1 for score in defined if score.note)
    notes = []
    if len(defined) < len(scores):
        notes.append(f"{len(defined)} of {len(scores)} environments can be scored")
    if partial:
        notes.append(f"{partial} environments have classes that the others lack")
    return Score(value, rows, "; ".join(notes))
