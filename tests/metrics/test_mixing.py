import math

import numpy as np
import pytest

from deconfound.errors import UserError
from deconfound.metrics.mixing import clisi, ilisi, lisi, lisi_ratio
from deconfound.metrics.neighbors import neighbor_graph


def cloud(rows: int = 400) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(rows, 4))


def test_two_alternating_groups_give_two() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(lisi(ring, np.tile([0, 1], 200)), 2.0, rtol=0, atol=0.02)


def test_two_randomly_mixed_groups_fall_short_of_two_by_sampling_alone() -> None:
    """p is the mean of n coin flips, n the effective number of neighbours, between 10 and 30."""
    values = lisi(np.random.default_rng(5).normal(size=(2000, 4)), np.tile([0, 1], 1000))
    assert 2 / (1 + 1 / 10) < values.mean() < 2 / (1 + 1 / 30)
    assert values.max() <= 2 + 1e-12


def test_duplicates_of_one_point_weigh_the_same() -> None:
    """A row sees 90 of the 181 others, of which 44 to 46 are of its group."""
    values = lisi(np.zeros((182, 4)), np.tile([0, 1], 91))
    np.testing.assert_allclose(values, 1 / ((44 / 90) ** 2 + (46 / 90) ** 2), rtol=0, atol=2e-3)


def test_two_separated_groups_give_one() -> None:
    points, group = cloud(), np.repeat([0, 1], 200)
    points[group == 1] += 100
    np.testing.assert_allclose(lisi(points, group), 1.0, rtol=0, atol=1e-12)


def test_columns_share_one_call_and_graph() -> None:
    generator = np.random.default_rng(6)
    groups = np.stack([generator.integers(0, 3, 400), generator.integers(0, 50, 400)], axis=1)
    graph = neighbor_graph(cloud())
    both = lisi(graph, groups)
    assert both.shape == (400, 2)
    np.testing.assert_array_equal(both[:, 0], lisi(cloud(), groups[:, 0]))
    np.testing.assert_array_equal(both[:, 1], lisi(graph, groups[:, 1]))


def test_a_longer_graph_serves_and_a_shorter_one_is_refused() -> None:
    group = np.arange(400) % 3
    longer = lisi(neighbor_graph(cloud(), 120), group)
    np.testing.assert_array_equal(longer, lisi(neighbor_graph(cloud(), 90), group))
    with pytest.raises(UserError, match=r"holds 60 neighbours.*needs 90.*k=90"):
        lisi(neighbor_graph(cloud(), 60), group)


def test_codes_need_not_be_dense() -> None:
    group = np.arange(400) % 3
    sparse = lisi(cloud(), np.array([900, 7, 12])[group])
    np.testing.assert_allclose(sparse, lisi(cloud(), group), rtol=0, atol=1e-12)


def test_unknown_groups_are_left_out_of_the_shares() -> None:
    points, group = cloud(), np.arange(400) % 2
    hidden = np.random.default_rng(7).random(400) < 0.3
    values = lisi(points, np.where(hidden, -1, group))
    assert np.isnan(values[hidden]).all()
    assert not np.isnan(values[~hidden]).any()
    assert values[~hidden].max() <= 2 + 1e-12
    as_floats = lisi(points, np.where(hidden, np.nan, group.astype(float)))
    np.testing.assert_array_equal(as_floats, values)
    third = lisi(points, np.where(hidden, 2, group))
    assert (third[~hidden] > values[~hidden]).mean() > 0.9


def test_no_known_neighbour_is_undefined() -> None:
    group = np.full(400, -1)
    group[0] = 3
    assert np.isnan(lisi(cloud(), group)).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_no_neighbourhood_is_undefined(rows: int) -> None:
    assert np.isnan(lisi(cloud(rows), np.arange(rows))).all()


def test_entropy_zero_is_undefined() -> None:
    points, group = cloud(), np.arange(400) % 2
    assert np.isnan(lisi(points * 1e25, group)).all()
    assert not np.isnan(lisi(points * 1e9, group)).any()


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e9])
def test_scale_of_the_embedding_does_not_matter(scale: float) -> None:
    group = np.arange(400) % 3
    np.testing.assert_allclose(
        lisi(cloud() * scale, group), lisi(cloud(), group), rtol=0, atol=5e-4
    )


def test_refuses_wrong_arguments() -> None:
    with pytest.raises(UserError, match="perplexity 1"):
        lisi(cloud(), np.zeros(400, int), perplexity=1.0)
    with pytest.raises(UserError, match="399 group codes for 400 rows"):
        lisi(cloud(), np.zeros(399, int))


def test_ratio_and_its_factors() -> None:
    environment = np.array([3.0, 2.0, np.nan, 1.0])
    label = np.array([1.0, 1.0, 2.0, np.nan])
    ratio = lisi_ratio(environment, label, n_environments=4, n_labels=2)
    assert ratio.environment == (pytest.approx(2.0 / 4), 3, "")
    assert ratio.label == (pytest.approx((4 / 3) / 2), 3, "")
    assert ratio.ratio.value == pytest.approx((2.0 / 4) / ((4 / 3) / 2))


def test_ratio_reaches_its_ideal_and_its_worst() -> None:
    points = cloud(900)
    first, second = np.arange(900) % 3, np.repeat([0, 1, 2], 300)
    points[:, 0] += 100 * second
    mixed, separated = lisi(points, np.stack([first, second], axis=1)).T
    best = lisi_ratio(mixed, separated, 3, 3).ratio.value
    worst = lisi_ratio(separated, mixed, 3, 3).ratio.value
    assert 2.6 < best <= 3
    assert worst == pytest.approx(1 / best)


def test_undefined_summaries_say_why() -> None:
    nothing, ones = np.full(3, np.nan), np.ones(3)
    assert math.isnan(lisi_ratio(nothing, ones, 3, 2).ratio.value)
    assert lisi_ratio(nothing, ones, 3, 2).ratio.note == "no row has a LISI over environments"
    assert lisi_ratio(ones, ones, 1, 2).ratio.note == "only one environment"
    assert math.isnan(ilisi(ones, 1).value) and ilisi(ones, 1).note == "only one environment"
    assert math.isnan(clisi(nothing, 4).value)
    assert clisi(nothing, 4).note == "no row has a LISI over labels"


def test_scaled_medians() -> None:
    values = np.array([1.0, 2.5, 4.0, np.nan])
    assert ilisi(values, 4) == (pytest.approx(0.5), 3, "")
    assert clisi(values, 4) == (pytest.approx(0.5), 3, "")
    assert ilisi(np.full(5, 4.0), 4).value == 1.0
    assert clisi(np.ones(5), 4).value == 1.0
