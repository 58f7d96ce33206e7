"""Known relations against loops written out by hand, and against what chance gives."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deconfound.errors import UserError
from deconfound.metrics.corum import (
    CODE_PERCENTILES,
    PAPER_PERCENTILES,
    cosines,
    relation_average_precision,
    relation_curve,
    relation_prevalence,
    relation_recall,
)

Doubles = NDArray[np.float64]
Pairs = NDArray[np.int64]


def planted(
    genes: int = 60, complexes: int = 10, signal: float = 1.0, alone: int = 15, seed: int = 0
) -> tuple[Doubles, Pairs]:
    """Genes (G, 8) around the centre of their complex; the last `alone` are in none."""
    stream = np.random.default_rng(seed)
    of_gene = np.arange(genes) % complexes
    values = stream.normal(size=(genes, 8)) + signal * stream.normal(size=(complexes, 8))[of_gene]
    inside = genes - alone
    pairs = [
        (i, j) for i in range(inside) for j in range(i + 1, inside) if of_gene[i] == of_gene[j]
    ]
    return values, np.array(pairs)


def by_hand(values: Doubles, pairs: Pairs, percentiles: tuple[int, ...]) -> tuple[list, list]:
    """METHODS G, with loops over ordered pairs."""
    kept = sorted(set(pairs.ravel().tolist()))
    unit = [values[g] / math.sqrt(float(values[g] @ values[g])) for g in kept]
    known = {tuple(pair) for pair in pairs.tolist()}
    known |= {(j, i) for i, j in known}
    similar = [[float(a @ b) for b in unit] for a in unit]
    flat = sorted(value for row in similar for value in row)

    def percentile(q: float) -> float:
        place = q / 100 * (len(flat) - 1)
        low = math.floor(place)
        high = min(low + 1, len(flat) - 1)
        return flat[low] + (place - low) * (flat[high] - flat[low])

    precision, recall = [], []
    for q in percentiles:
        upper, lower = percentile(q), percentile(100 - q)
        called = right = total = 0
        for a, first in enumerate(kept):
            for b, second in enumerate(kept):
                if a == b:
                    continue
                positive = similar[a][b] >= upper or similar[a][b] <= lower
                related = (first, second) in known
                called += positive
                right += positive and related
                total += related
        precision.append(right / called if called else 0.0)
        recall.append(right / total)
    return precision, recall


@pytest.mark.parametrize("percentiles", [CODE_PERCENTILES, PAPER_PERCENTILES])
def test_the_curve_is_that_of_the_loops(percentiles: tuple[int, ...]) -> None:
    values, pairs = planted()
    found = relation_curve(values, pairs, percentiles)
    precision, recall = by_hand(values, pairs, percentiles)
    np.testing.assert_allclose(found.precision, precision, atol=1e-12)
    np.testing.assert_allclose(found.recall, recall, atol=1e-12)
    area = sum(
        (recall[k] - recall[k + 1]) * (precision[k] + precision[k + 1]) / 2
        for k in range(len(recall) - 1)
    )
    assert found.area().value == pytest.approx(area, abs=1e-12)
    assert found.area().n == found.genes == 45


def test_genes_in_no_pair_are_not_on_the_curve_and_are_in_the_tails() -> None:
    values, pairs = planted()
    other = values.copy()
    other[45:] *= -1
    other[45:, 0] += 5
    assert relation_curve(values, pairs).area() == relation_curve(other, pairs).area()
    before, after = (relation_average_precision(one, pairs) for one in (values, other))
    assert before == after
    assert relation_recall(values, pairs) != relation_recall(other, pairs)


def test_average_precision_by_hand() -> None:
    values, pairs = planted(20, 4, alone=0)
    cosine = cosines(values)
    known = {tuple(pair) for pair in pairs.tolist()}
    ranked = sorted(
        ((i, j) for i in range(20) for j in range(i + 1, 20)), key=lambda ij: -cosine[ij]
    )
    hits, total = 0, 0.0
    for rank, pair in enumerate(ranked, start=1):
        if pair in known:
            hits += 1
            total += hits / rank
    found = relation_average_precision(values, pairs)
    assert found.value == pytest.approx(total / len(known), abs=1e-12)
    assert relation_prevalence(pairs).value == pytest.approx(len(known) / 190)


def test_recall_in_the_tails_by_hand() -> None:
    values, pairs = planted()
    cosine = cosines(values)
    every = sorted(cosine[i, j] for i in range(60) for j in range(i + 1, 60))
    for tail in (0.05, 0.1):
        lower, upper = np.quantile(every, [tail, 1 - tail])
        inside = [not lower < cosine[i, j] < upper for i, j in pairs.tolist()]
        found = relation_recall(values, pairs, tail)
        assert found.value == pytest.approx(sum(inside) / len(inside))


def test_chance_is_as_known_and_signal_is_above_it() -> None:
    """METHODS K: EFAAR about .10 and .20; the area about prevalence × span of recall, .38."""
    values, pairs = planted(400, 100, 0.0, 100)
    prevalence = relation_prevalence(pairs).value
    drawn = [np.random.default_rng(k).permutation(values) for k in range(8)]
    five, ten = (np.mean([relation_recall(v, pairs, t).value for v in drawn]) for t in (0.05, 0.1))
    assert 0.08 < five < 0.12
    assert 0.17 < ten < 0.23
    area = np.mean([relation_curve(v, pairs).area().value for v in drawn])
    assert area == pytest.approx(prevalence * 0.38, rel=0.25)
    average = np.mean([relation_average_precision(v, pairs).value for v in drawn])
    assert average == pytest.approx(prevalence, rel=0.25)
    strong, pairs = planted(400, 100, 1.5, 100)
    assert relation_recall(strong, pairs).value > 0.5
    assert relation_average_precision(strong, pairs).value > 20 * prevalence


def test_scale_does_not_matter_and_a_gene_at_the_origin_is_like_none() -> None:
    values, pairs = planted()
    scaled = values * np.linspace(0.1, 9, 60)[:, None]
    assert relation_curve(scaled, pairs).area().value == pytest.approx(
        relation_curve(values, pairs).area().value
    )
    values[3] = 0
    assert (cosines(values)[3] == 0).all()
    assert math.isfinite(relation_average_precision(values, pairs).value)


def test_without_pairs_it_is_undefined_and_few_genes_are_noted() -> None:
    values, pairs = planted()
    none = pairs[:0]
    for score in (
        relation_curve(values, none).area(),
        relation_average_precision(values, none),
        relation_recall(values, none),
        relation_prevalence(none),
    ):
        assert math.isnan(score.value)
        assert score.note == "no two genes are in one complex"
    assert relation_recall(values, pairs[:2]).note.startswith("only ")
    assert relation_recall(values, pairs).note == ""


@pytest.mark.parametrize("wrong", [[[1, 0]], [[0, 99]], [[2, 2]], [[0, 1], [0, 1]]])
def test_malformed_pairs_are_refused(wrong: list[list[int]]) -> None:
    values, _ = planted()
    with pytest.raises(UserError, match="pairs: expected rows i < j"):
        relation_curve(values, np.array(wrong))
