"""Scores of imputed images, against values worked out by hand and by loops."""

import numpy as np
import pytest

from deconfound.metrics.imputation import (
    CONFIDENT,
    absolute_distance,
    hallucination_rate,
    label_agreement,
    label_probability,
    matched_moments,
    relative_error,
    squared_distance,
)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    """Source and true images (6, 2, 5, 5) uint8, some darker than the other, some brighter."""
    stream = np.random.default_rng(0)
    first, second = stream.integers(0, 256, (2, 6, 2, 5, 5), dtype=np.uint8)
    return first, second


def test_distances_are_sums_over_the_pixels_of_a_channel(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    source, true = images
    absolute, squared = absolute_distance(source, true), squared_distance(source, true)
    for row in range(6):
        for channel in range(2):
            pairs = [
                (int(a), int(b))
                for a, b in zip(source[row, channel].flat, true[row, channel].flat, strict=True)
            ]
            assert absolute[row, channel] == sum(abs(a - b) for a, b in pairs)
            assert squared[row, channel] == sum((a - b) ** 2 for a, b in pairs)


def test_identity_is_exactly_one_truth_exactly_zero_and_halfway_a_half(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    source, true = images
    alone = absolute_distance(source, true).sum(axis=1)
    halfway = (source.astype(float) + true) / 2
    for image, expected in ((source, 1.0), (true, 0.0), (halfway, 0.5)):
        found = relative_error(absolute_distance(image, true).sum(axis=1), alone)
        assert found.score == (expected, 6, "")
        assert (found.low, found.high) == (expected, expected)
    squared = squared_distance(source, true).sum(axis=1)
    found = relative_error(squared_distance(halfway, true).sum(axis=1), squared)
    assert found.score.value == pytest.approx(0.25)


def test_the_error_is_of_all_pixels_and_no_mean_of_ratios() -> None:
    found = relative_error(np.array([1.0, 8.0]), np.array([1.0, 10.0]))
    assert found.score.value == pytest.approx(9 / 11)


def test_the_interval_draws_units_and_not_rows() -> None:
    stream = np.random.default_rng(0)
    unit = np.repeat(np.arange(12), 50)
    alone = np.ones(600)
    imputed = np.repeat(stream.random(12), 50)
    of_wells, of_rows = relative_error(imputed, alone, unit), relative_error(imputed, alone)
    assert of_wells.score == of_rows.score
    assert of_wells.low < of_wells.score.value < of_wells.high
    assert of_wells.high - of_wells.low > 4 * (of_rows.high - of_rows.low)
    means = np.array([imputed[unit == u].mean() for u in range(12)])
    again = stream.choice(means, (4000, 12)).mean(axis=1)
    expected = np.percentile(again, [2.5, 97.5])
    np.testing.assert_allclose([of_wells.low, of_wells.high], expected, atol=0.02)
    assert relative_error(imputed, alone, unit) == of_wells
    assert relative_error(imputed, alone, unit, seed=1) != of_wells


def test_an_undefined_error_says_why() -> None:
    zero = np.zeros(3)
    same = relative_error(np.ones(3), zero)
    assert np.isnan([same.score.value, same.low, same.high]).all()
    assert "the true one already" in same.score.note
    nothing = relative_error(np.empty(0), np.empty(0))
    assert np.isnan(nothing.score.value)
    assert nothing.score.note == "no row to impute"
    one = relative_error(np.ones(3), np.full(3, 2.0), np.zeros(3, dtype=np.int64))
    assert one.score.value == 0.5
    assert np.isnan([one.low, one.high]).all()


def test_probability_and_agreement_are_those_of_the_rows_they_can_be_of() -> None:
    imputed = np.array([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5]])
    true = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7]])
    label = np.array([0, 0, 1, -1])
    found = label_probability(imputed, label)
    assert found.value == pytest.approx((0.7 + 0.4 + 0.9) / 3)
    assert found.n == 3
    assert label_agreement(imputed, true) == (0.5, 4, "")
    assert np.isnan(label_probability(imputed, np.full(4, -1)).value)
    assert np.isnan(label_agreement(imputed[:0], true[:0]).value)


def test_hallucinated_is_what_was_right_and_is_surely_another_label() -> None:
    true = np.array([[0.9, 0.05, 0.05]] * 4 + [[0.1, 0.8, 0.1], [0.9, 0.05, 0.05]])
    imputed = np.array(
        [
            [0.9, 0.05, 0.05],  # kept
            [0.05, 0.9, 0.05],  # hallucinated
            [0.3, 0.6, 0.1],  # another label, but not surely
            [0.2, 0.0, CONFIDENT],  # just surely enough
            [0.0, 0.0, 1.0],  # the oracle was wrong on the true image already
            [0.0, 1.0, 0.0],  # without a label
        ]
    )
    label = np.array([0, 0, 0, 0, 0, -1])
    found = hallucination_rate(imputed, true, label)
    assert found.value == 0.5
    assert found.n == 4
    assert "80%" in found.note
    assert hallucination_rate(imputed, true, label, confident=0.95).value == 0
    assert hallucination_rate(true, true, label).value == 0
    swapped = np.roll(true, 1, axis=1)
    assert hallucination_rate(swapped, true, label).value == 1
    assert np.isnan(hallucination_rate(imputed, true, np.full(6, 2)).value)


def test_moments_are_those_of_the_style_image_and_the_pattern_the_sources() -> None:
    stream = np.random.default_rng(1)
    source = stream.integers(0, 200, (4, 3, 8, 8), dtype=np.uint8)
    style = stream.integers(0, 60_000, (4, 3, 8, 8), dtype=np.uint16)
    source[0, 0] = 7
    found = matched_moments(source, style[:, None])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=(2, 3)), style.mean(axis=(2, 3)), rtol=1e-5)
    assert (found[0, 0] == found[0, 0, 0, 0]).all()
    for row, channel in ((0, 1), (1, 0), (3, 2)):
        np.testing.assert_allclose(found[row, channel].std(), style[row, channel].std(), rtol=1e-4)
        pattern = np.corrcoef(found[row, channel].ravel(), source[row, channel].ravel())
        assert pattern[0, 1] == pytest.approx(1)


def test_a_channel_that_varies_by_rounding_alone_takes_the_mean() -> None:
    stream = np.random.default_rng(4)
    source = np.float32(1_000) + np.float32(6e-5) * (stream.random((1, 1, 6, 6)) > 0.5)
    style = 500 + 100 * stream.random((1, 1, 1, 6, 6))
    np.testing.assert_allclose(matched_moments(source, style), style.mean(), rtol=1e-5)


def test_moments_of_several_style_images_are_averaged() -> None:
    stream = np.random.default_rng(3)
    source, style = stream.random((2, 1, 6, 6)), stream.random((2, 3, 1, 6, 6))
    found = matched_moments(source, style)
    wanted = np.mean([[image.std() for image in images] for images in style], axis=1)
    np.testing.assert_allclose(found.std(axis=(2, 3))[:, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=(2, 3)), style.mean(axis=(1, 3, 4)), rtol=1e-5)


def test_moments_undo_a_gain_and_an_offset() -> None:
    source = np.random.default_rng(2).integers(0, 100, (3, 2, 6, 6), dtype=np.uint8)
    true = source * 2.5 + 20
    found = matched_moments(source, true[:, None])
    error = relative_error(
        absolute_distance(found, true).sum(axis=1), absolute_distance(source, true).sum(axis=1)
    )
    assert error.score.value < 1e-6
