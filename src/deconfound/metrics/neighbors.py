"""The k nearest neighbours of rows, shared by all neighbour metrics."""

from dataclasses import dataclass

import numpy as np

from deconfound.arrays import AnyCodes, AnyFloats, Codes, Doubles
from deconfound.errors import UserError

SPARE_CANDIDATES = 10
CHUNK_ROWS = 128


@dataclass(frozen=True)
class NeighborGraph:
    """The k nearest other rows of each row, nearest first.

    `indices` (N, k) int64 and `distances` (N, k) float64, Euclidean. A row is never its own
    neighbour, even where other rows equal it; ties go to the lower row number.
    """

    indices: Codes
    distances: Doubles

    @property
    def k(self) -> int:
        """Neighbours per row."""
        return int(self.indices.shape[1])

    def __len__(self) -> int:
        return len(self.indices)


def neighbor_graph(embedding: AnyFloats, k: int = 90) -> NeighborGraph:
    """Exact Euclidean neighbours of every row of `embedding` (N, D), any float dtype.

    k is clipped to N - 1. The search ranks candidates in float32 after centring; their distances
    are recomputed in float64, so two rows can swap places only across the k-th rank, and only if
    their squared distances agree to about 1e-6 of the squared extent of the data. The result does
    not depend on the number of threads. Raises UserError on NaN, infinity or a wrong shape.
    """
    refuse_malformed(embedding)
    rows = len(embedding)
    k = max(min(k, rows - 1), 0)
    indices, distances = nearest(embedding, embedding, k, exclude=np.arange(rows))
    return NeighborGraph(indices, distances)


def nearest(
    reference: AnyFloats, query: AnyFloats, k: int, exclude: Codes | None = None
) -> tuple[Codes, Doubles]:
    """Row numbers (Q, k) into `reference` (M, D) nearest to each row of `query` (Q, D).

    Also their Euclidean distances (Q, k), ascending. `exclude` (Q,) names one reference row per
    query that may not be returned. k must not exceed the rows that remain.
    """
    if k == 0 or not len(query):
        return np.empty((len(query), k), np.int64), np.empty((len(query), k))
    candidates = min(k + SPARE_CANDIDATES + (exclude is not None), len(reference))
    indices = _search(reference, query, candidates)
    distances = np.empty((len(query), k))
    chosen = np.empty((len(query), k), np.int64)
    for start in range(0, len(query), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        difference = reference[indices[rows]].astype(np.float64) - query[rows, None, :]
        length = np.sqrt(np.einsum("qkd,qkd->qk", difference, difference))
        if exclude is not None:
            length[indices[rows] == exclude[rows, None]] = np.inf
        order = np.lexsort((indices[rows], length), axis=1)[:, :k]
        distances[rows] = np.take_along_axis(length, order, axis=1)
        chosen[rows] = np.take_along_axis(indices[rows], order, axis=1)
    return chosen, distances


def vote(labels: AnyCodes) -> AnyCodes:
    """The commonest label (Q,) of each row of `labels` (Q, k), nearest first among equals."""
    votes = np.stack([(labels == labels[:, [j]]).sum(axis=1) for j in range(labels.shape[1])], 1)
    return np.take_along_axis(labels, votes.argmax(axis=1)[:, None], axis=1)[:, 0]


def refuse_malformed(embedding: AnyFloats, where: str = "") -> None:
    """Raise UserError, with the name of the file, unless `embedding` is a finite (N, D) array."""
    named = f"{where}: " if where else ""
    if embedding.ndim != 2:
        raise UserError(
            f"{named}embedding has shape {embedding.shape}; expected one row of features per image "
            "(N, D)"
        )
    bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(bad):
        raise UserError(
            f"{named}embedding row {bad[0]} holds NaN or infinity ({len(bad)} such rows); "
            "drop these rows or embed them again"
        )


def _search(reference: AnyFloats, query: AnyFloats, k: int) -> Codes:
    """Candidates in float32: centred and scaled, because faiss expands (x - y)^2."""
    import faiss
    from joblib import cpu_count

    centre = reference.mean(axis=0, dtype=np.float64)
    extent = float(np.abs(reference - centre).max()) or 1.0
    index = faiss.IndexFlatL2(reference.shape[1])
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(threads, cpu_count()))
    try:
        index.add(np.ascontiguousarray((reference - centre) / extent, dtype=np.float32))
        _, found = index.search(
            np.ascontiguousarray((query - centre) / extent, dtype=np.float32), k
        )
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(found, dtype=np.int64)
