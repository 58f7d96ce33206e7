"""Embeddings in two dimensions (UMAP)."""

import warnings

import numpy as np
import numpy.typing as npt

from deconfound.errors import UserError
from deconfound.metrics.neighbors import neighbor_graph
from deconfound.runtime.seeds import derived_seed

NEIGHBORS = 15


def coordinates(values: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """UMAP (McInnes et al. 2018) of values (P, D), from their exact neighbours, as (P, 2) float32.

    On one machine equal values and seeds give equal maps. Raises UserError for fewer than 4
    rows, for NaN, and where all rows coincide.
    """
    if len(values) < 4:
        raise UserError(f"{len(values)} rows; a map needs 4 or more")
    if np.ptp(values, axis=0).max() == 0:
        raise UserError("all rows of the embedding coincide")
    graph = neighbor_graph(values, NEIGHBORS - 1)
    itself = np.arange(len(values))[:, None]
    indices = np.concatenate([itself, graph.indices], axis=1)
    distances = np.concatenate([np.zeros((len(values), 1)), graph.distances], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(
            n_neighbors=indices.shape[1],
            precomputed_knn=(indices, distances.astype(np.float32)),
            init="spectral" if len(values) > 20 else "random",
            random_state=derived_seed(seed, "umap") % 2**32,
            n_jobs=1,
        )
        found = model.fit_transform(values)
    return np.asarray(found, dtype=np.float32)
