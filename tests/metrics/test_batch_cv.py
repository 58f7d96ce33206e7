import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from deconfound.errors import UserError
from deconfound.metrics.batch_cv import knn_batch_cv
from deconfound.metrics.neighbors import neighbor_graph

Screen = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def screen(shift: float = 1.0) -> Screen:
    """240 rows of 4 labels in 3 environments, environments shifted by `shift`; a third queries."""
    generator = np.random.default_rng(9)
    label, environment = generator.integers(0, 4, 240), generator.integers(0, 3, 240)
    embedding = (
        1.2 * generator.normal(size=(4, 6))[label]
        + shift * generator.normal(size=(3, 6))[environment]
        + generator.normal(size=(240, 6))
    )
    query = generator.random(240) < 0.33
    return embedding, label, environment, ~query, query


def by_loop(
    embedding: np.ndarray,
    label: np.ndarray,
    environment: np.ndarray,
    is_reference: np.ndarray,
    is_query: np.ndarray,
    k: int,
) -> dict[int, float]:
    """kNN BatchCV one query at a time; macro-F1 from scikit-learn."""
    scores = {}
    rows = range(len(embedding))
    for held_out in sorted({int(e) for e in environment if e >= 0}):
        reference = [
            j
            for j in rows
            if is_reference[j] and environment[j] not in (held_out, -1) and label[j] >= 0
        ]
        trained = {label[j] for j in reference}
        truth, predicted = [], []
        for i in rows:
            if not is_query[i] or environment[i] != held_out or label[i] not in trained:
                continue
            near = sorted((math.dist(embedding[i], embedding[j]), j) for j in reference)[:k]
            votes = [label[j] for _, j in near]
            most = max(votes.count(vote) for vote in votes)
            predicted.append(next(vote for vote in votes if votes.count(vote) == most))
            truth.append(label[i])
        shared = sorted(set(truth))
        scores[held_out] = f1_score(truth, predicted, labels=shared, average="macro")
    return scores


@pytest.mark.parametrize("k", [1, 2, 5, 200])
@pytest.mark.parametrize("shift", [0.5, 5.0], ids=["near", "far"])
def test_equals_a_loop_with_and_without_a_graph(k: int, shift: float) -> None:
    arrays = screen(shift)
    expected = by_loop(*arrays, k)
    for graph in (None, neighbor_graph(arrays[0], 90)):
        result = knn_batch_cv(*arrays, k=k, graph=graph)
        scores = {e: score.value for e, score in result.per_environment.items()}
        assert scores == pytest.approx(expected, abs=1e-12)
        assert result.mean.value == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
        assert result.mean.n == arrays[4].sum()
        assert result.mean.note == ""


@pytest.mark.parametrize("neighbours", [3, 6, 12, 24])
def test_a_graph_too_short_for_some_queries_changes_nothing(neighbours: int) -> None:
    """Labels at random, so that a vote of fewer or of wrong neighbours shows."""
    embedding, _, *others = screen()
    label = np.random.default_rng(12).integers(0, 2, 240)
    graph = neighbor_graph(embedding, neighbours)
    with_graph = knn_batch_cv(embedding, label, *others, graph=graph)
    assert with_graph == knn_batch_cv(embedding, label, *others)


def test_rows_of_the_own_environment_and_other_queries_never_vote() -> None:
    embedding, label, environment, is_reference, is_query = screen()
    whole = knn_batch_cv(embedding, label, environment, is_reference, is_query)
    keep = (environment != 1) & is_reference | (environment == 1) & is_query
    part = knn_batch_cv(*(array[keep] for array in screen()))
    assert part.per_environment == {1: whole.per_environment[1]}


def test_missing_codes_take_no_part() -> None:
    embedding, label, environment, is_reference, is_query = screen()
    label, environment = label.copy(), environment.copy()
    label[::7], environment[::11] = -1, -1
    expected = by_loop(embedding, label, environment, is_reference, is_query, 5)
    result = knn_batch_cv(embedding, label, environment, is_reference, is_query)
    scores = {e: score.value for e, score in result.per_environment.items()}
    assert scores == pytest.approx(expected, abs=1e-12)
    assert result.mean.n == (is_query & (label >= 0) & (environment >= 0)).sum()


def test_classes_of_one_environment_are_not_scored() -> None:
    embedding, label, environment, is_reference, is_query = screen()
    label = np.where(environment == 2, np.where(label == 3, 9, label), label)
    expected = by_loop(embedding, label, environment, is_reference, is_query, 5)
    result = knn_batch_cv(embedding, label, environment, is_reference, is_query)
    assert result.per_environment[2].value == pytest.approx(expected[2], abs=1e-12)
    assert result.per_environment[2].note.startswith("3 of 4 test classes are in training")
    assert result.mean.note == "1 environments have classes that the others lack"


def test_one_environment_is_undefined() -> None:
    embedding, label, _, is_reference, is_query = screen()
    result = knn_batch_cv(embedding, label, np.zeros(240, int), is_reference, is_query)
    assert math.isnan(result.mean.value)
    assert result.per_environment[0].note == "no training rows in the other environments"
    assert result.mean.note == "no environment has query rows whose class others contain"


def test_refuses_wrong_arguments() -> None:
    arrays = screen()
    with pytest.raises(UserError, match="k = 0"):
        knn_batch_cv(*arrays, k=0)
    with pytest.raises(UserError, match="100 rows and the embedding 240"):
        knn_batch_cv(*arrays, graph=neighbor_graph(arrays[0][:100]))
