import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from deconfound.errors import UserError
from deconfound.metrics.neighbors import neighbor_graph


def embedding(rows: int = 400, features: int = 16) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, features))


def brute_force(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = cdist(points, points)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distance, order, axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_equals_brute_force(dtype) -> None:
    points = embedding().astype(dtype)
    graph = neighbor_graph(points, 25)
    indices, distances = brute_force(points.astype(np.float64), 25)
    np.testing.assert_array_equal(graph.indices, indices)
    np.testing.assert_allclose(graph.distances, distances, rtol=1e-12)
    assert (graph.indices.dtype, graph.distances.dtype) == (np.int64, np.float64)
    assert (graph.k, len(graph)) == (25, 400)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_neighbours_do_not_depend_on_offset_or_scale(offset: float, scale: float) -> None:
    graph = neighbor_graph((embedding() + offset) * scale, 25)
    indices, distances = brute_force(embedding(), 25)
    np.testing.assert_array_equal(graph.indices, indices)
    np.testing.assert_allclose(graph.distances / scale, distances, rtol=1e-9)


def test_a_row_is_never_its_own_neighbour_among_exact_duplicates() -> None:
    points = np.repeat(embedding(5), 30, axis=0)
    graph = neighbor_graph(points, 40)
    assert not (graph.indices == np.arange(150)[:, None]).any()
    assert (graph.distances[:, :29] == 0).all()
    assert (graph.distances[:, 29:] > 0).all()
    for neighbours in graph.indices:
        assert len(set(neighbours)) == 40


def test_all_rows_equal() -> None:
    graph = neighbor_graph(np.ones((60, 4), np.float32), 20)
    assert not (graph.indices == np.arange(60)[:, None]).any()
    assert (graph.distances == 0).all()


def test_close_pairs_far_from_the_origin_keep_exact_distances() -> None:
    points = np.repeat(embedding(50), 2, axis=0) + 1000
    points[1::2, 0] += 1e-6
    graph = neighbor_graph(points, 3)
    np.testing.assert_array_equal(graph.indices[:, 0], np.arange(100) ^ 1)
    np.testing.assert_allclose(graph.distances[:, 0], 1e-6, rtol=1e-6)


def test_k_is_clipped_to_the_other_rows() -> None:
    assert neighbor_graph(embedding(10), 90).indices.shape == (10, 9)
    assert neighbor_graph(embedding(1), 90).indices.shape == (1, 0)


def test_repeats_itself() -> None:
    first, second = neighbor_graph(embedding()), neighbor_graph(embedding())
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def test_leaves_the_thread_setting_of_faiss_alone() -> None:
    faiss = pytest.importorskip("faiss")
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(64)
        neighbor_graph(embedding(50), 3)
        assert faiss.omp_get_max_threads() == 64
    finally:
        faiss.omp_set_num_threads(threads)


def test_refuses_what_has_no_distances() -> None:
    holed = embedding()
    holed[7, 2] = math.nan
    holed[9, 0] = math.inf
    with pytest.raises(UserError, match=r"row 7 .*2 such rows"):
        neighbor_graph(holed)
    with pytest.raises(UserError, match=r"shape \(400,\)"):
        neighbor_graph(holed[:, 0])
