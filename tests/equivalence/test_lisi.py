"""LISI against a loop written from its definition, scib-metrics and harmonypy."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deconfound.metrics.mixing import clisi, ilisi, lisi
from deconfound.metrics.neighbors import neighbor_graph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def screen() -> tuple[Floats, Ints, Ints]:
    """300 rows, 8 features: four label clusters, each shifted by one of three environments."""
    generator = np.random.default_rng(20)
    label = generator.integers(0, 4, 300)
    environment = generator.integers(0, 3, 300)
    embedding = (
        1.5 * generator.normal(size=(4, 8))[label]
        + 0.7 * generator.normal(size=(3, 8))[environment]
        + generator.normal(size=(300, 8))
    )
    return embedding, label, environment


def copies() -> tuple[Floats, Ints]:
    """Seven copies of each of 40 points: the 90 nearest are 6 copies and 12 whole points."""
    points = np.random.default_rng(21).normal(size=(40, 8))
    return np.repeat(points, 7, axis=0), np.tile([0, 1, 2, 0, 1, 0, 0], 40)


def lisi_by_loop(embedding: Floats, group: Ints, perplexity: float, k: int) -> list[float]:
    """The definition, one row and one neighbour at a time."""
    values = []
    for i, row in enumerate(embedding):
        near = sorted((math.dist(row, other), j) for j, other in enumerate(embedding) if j != i)[:k]
        beta, lower, upper = 1.0, -math.inf, math.inf
        for tries in range(51):
            weight = [math.exp(-beta * d) for d, _ in near]
            total = sum(weight)
            mean = sum(w * d for w, (d, _) in zip(weight, near, strict=True)) / total
            excess = math.log(total) + beta * mean - math.log(perplexity)
            if abs(excess) < 1e-5 or tries == 50:
                break
            if excess > 0:
                lower = beta
                beta = 2 * beta if upper == math.inf else (beta + upper) / 2
            else:
                upper = beta
                beta = beta / 2 if lower == -math.inf else (beta + lower) / 2
        share: dict[int, float] = {}
        for w, (_, j) in zip(weight, near, strict=True):
            share[int(group[j])] = share.get(int(group[j]), 0.0) + w / total
        values.append(1 / sum(p**2 for p in share.values()))
    return values


@pytest.mark.parametrize(
    ("rows", "perplexity", "k"),
    [(200, 30.0, 90), (200, 5.5, 16), (50, 30.0, 49)],
    ids=["standard", "small perplexity", "fewer rows than neighbours"],
)
def test_equals_the_definition(rows: int, perplexity: float, k: int) -> None:
    embedding, label, _ = screen()
    expected = lisi_by_loop(embedding[:rows], label[:rows], perplexity, k)
    ours = lisi(embedding[:rows], label[:rows], perplexity)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_equals_the_definition_on_exact_duplicates() -> None:
    embedding, group = copies()
    expected = lisi_by_loop(embedding, group, 30.0, 90)
    np.testing.assert_allclose(lisi(embedding, group), expected, rtol=0, atol=1e-9)


# scib-metrics 0.5.10 works in float32 and masks the row itself wherever it stands in the list.
# Its default perplexity is a third of the list's length, the row itself included, so a list of 91
# gives the standard 90 neighbours at perplexity 30. Made by `scib_values(*screen())` in an
# environment with scib-metrics 0.5.10 and jax 0.10.2.
SCIB_LABEL = [1.2221693992614746, 1.0468946695327759, 1.0418546199798584, 1.0297247171401978]
SCIB_ENVIRONMENT = [2.859295129776001, 2.2676758766174316, 2.1380343437194824, 2.413633108139038]
SCIB_MEANS = [1.1329491, 2.2595208]
SCIB_ILISI, SCIB_CLISI = 0.6394441, 0.98616713


def scib_values(
    embedding: Floats, label: Ints, environment: Ints
) -> tuple[Floats, Floats, float, float]:
    """Per-row LISI of label and environment, iLISI and cLISI as scib-metrics computes them."""
    scib = pytest.importorskip("scib_metrics", reason="the scib-metrics package is not installed")
    from scib_metrics.nearest_neighbors import NeighborsResults

    distance = np.sqrt(((embedding[:, None] - embedding[None]) ** 2).sum(axis=2))
    order = np.argsort(distance, axis=1, kind="stable")[:, :91]
    near = NeighborsResults(indices=order, distances=np.take_along_axis(distance, order, axis=1))
    return (
        np.asarray(scib.lisi_knn(near, label)),
        np.asarray(scib.lisi_knn(near, environment)),
        float(scib.ilisi_knn(near, environment)),
        float(scib.clisi_knn(near, label)),
    )


def test_agrees_with_pinned_scib_metrics() -> None:
    embedding, label, environment = screen()
    ours = lisi(embedding, np.stack([label, environment], axis=1))
    np.testing.assert_allclose(ours[:4, 0], SCIB_LABEL, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours[:4, 1], SCIB_ENVIRONMENT, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours.mean(axis=0), SCIB_MEANS, rtol=0, atol=1e-3)
    assert ilisi(ours[:, 1], 3).value == pytest.approx(SCIB_ILISI, abs=1e-3)
    assert clisi(ours[:, 0], 4).value == pytest.approx(SCIB_CLISI, abs=1e-3)


def test_agrees_with_installed_scib_metrics() -> None:
    embedding, label, environment = screen()
    scib_label, scib_environment, scib_ilisi, scib_clisi = scib_values(
        embedding, label, environment
    )
    ours = lisi(embedding, np.stack([label, environment], axis=1))
    np.testing.assert_allclose(ours[:, 0], scib_label, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours[:, 1], scib_environment, rtol=0, atol=1e-3)
    assert ilisi(ours[:, 1], 3).value == pytest.approx(scib_ilisi, abs=1e-3)
    assert clisi(ours[:, 0], 4).value == pytest.approx(scib_clisi, abs=1e-3)


# harmonypy 2.1.0 takes the 90 nearest other rows and drops the row itself by identity: ours.
# harmonypy 0.0.10 asks for the 90 nearest including the row itself and drops the first column:
# 89 neighbours, and with exact duplicates the dropped column may be a copy while the row stays its
# own neighbour (all seven copies then share one value). Made by
# `compute_lisi(embedding, DataFrame({"group": group}), ["group"], 30)` of either version.
HARMONYPY_210_ENVIRONMENT = [2.8592948957882265, 2.267674606959956, 2.138035483359949]
HARMONYPY_0010_ENVIRONMENT = [2.8587645834686204, 2.268355622382578, 2.138311687873376]
HARMONYPY_210_COPIES = [2.4881235494166933, 2.1384208802510987, 1.9980118410753098]
HARMONYPY_0010_COPIES = [2.0010420165161382, 2.0010420165161382, 2.0010420165161382]


def test_equals_pinned_harmonypy_2() -> None:
    embedding, _, environment = screen()
    ours = lisi(embedding, environment)[:3]
    np.testing.assert_allclose(ours, HARMONYPY_210_ENVIRONMENT, rtol=0, atol=1e-9)
    np.testing.assert_allclose(lisi(*copies())[:3], HARMONYPY_210_COPIES, rtol=0, atol=1e-9)


def test_harmonypy_0_used_one_neighbour_less() -> None:
    embedding, _, environment = screen()
    with_89 = lisi_by_loop(embedding, environment, 30.0, 89)[:3]
    np.testing.assert_allclose(with_89, HARMONYPY_0010_ENVIRONMENT, rtol=0, atol=1e-9)
    ours = lisi(embedding, environment)[:3]
    assert np.abs(ours - HARMONYPY_0010_ENVIRONMENT).min() > 1e-4


def test_harmonypy_0_counted_the_row_among_its_own_duplicates() -> None:
    embedding, group = copies()
    graph = neighbor_graph(embedding)
    assert not (graph.indices == np.arange(len(embedding))[:, None]).any()
    assert np.abs(lisi(graph, group)[:3] - HARMONYPY_0010_COPIES).max() > 0.4


@pytest.mark.parametrize("duplicates", [False, True])
def test_equals_installed_harmonypy(duplicates: bool) -> None:
    harmonypy = pytest.importorskip("harmonypy", reason="the harmonypy package is not installed")
    pandas = pytest.importorskip("pandas")
    if int(harmonypy.__version__.split(".")[0]) < 2:
        pytest.skip(f"harmonypy {harmonypy.__version__} is older than 2.0: 89 neighbours")
    embedding, group = copies() if duplicates else screen()[:2]
    table = pandas.DataFrame({"group": group})
    theirs = harmonypy.compute_lisi(embedding, table, ["group"])[:, 0]
    np.testing.assert_allclose(lisi(embedding, group), theirs, rtol=0, atol=1e-9)
