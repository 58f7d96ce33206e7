"""Where an imputed image came from: features by loops, readings that are known beforehand."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import skew

from deconfound.metrics.source import BANDS, PERCENTILES, image_features, source_reading

MOMENTS = len(PERCENTILES)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)


def of_channels(images: np.ndarray) -> np.ndarray:
    """(N, C, numbers of a channel)."""
    pairs = images.shape[1] * (images.shape[1] - 1) // 2
    found = image_features(images)
    return found[:, : found.shape[1] - pairs].reshape(*images.shape[:2], -1)


def test_features_are_percentiles_moments_spectrum_and_correlations(images: np.ndarray) -> None:
    found, channels = image_features(images), of_channels(images)
    assert found.shape == (4, 3 * (MOMENTS + 3 + BANDS) + 3)
    for row, image in enumerate(images.astype(float)):
        for channel, pixels in enumerate(image):
            own = channels[row, channel]
            np.testing.assert_allclose(own[:MOMENTS], np.percentile(pixels, PERCENTILES))
            expected = [pixels.mean(), pixels.std(), skew(pixels.ravel())]
            np.testing.assert_allclose(own[MOMENTS : MOMENTS + 3], expected)
        correlations = np.corrcoef(image.reshape(3, -1))[np.triu_indices(3, 1)]
        np.testing.assert_allclose(found[row, -3:], correlations)


def test_a_wave_is_in_the_ring_of_its_frequency() -> None:
    place = np.arange(32) / 32
    waves = np.stack([np.cos(2 * np.pi * periods * place) for periods in (1, 4, 16)])
    spectra = of_channels(np.tile(waves[:, None, None], (1, 1, 32, 1)))[:, 0, MOMENTS + 3 :]
    rings = spectra.argmax(axis=1)
    assert rings[0] == 0
    assert rings[1] == math.floor(math.log2(4) / math.log2(16 * math.sqrt(2)) * BANDS)
    assert rings[2] == BANDS - 1
    assert np.allclose(np.sort(spectra, axis=1)[:, :-1], 0, atol=1e-6)


def test_blur_darkens_the_fine_rings_and_brightness_none(images: np.ndarray) -> None:
    start = MOMENTS + 3
    spectra = of_channels(images)[..., start:]
    blurred = of_channels(gaussian_filter(images.astype(float), (0, 0, 1, 1)))[..., start:]
    assert (blurred[..., -1] < spectra[..., -1] - 2).all()
    brighter = of_channels(images * 3.0 + 7)
    np.testing.assert_allclose(brighter[..., start - 1 :], of_channels(images)[..., start - 1 :])
    np.testing.assert_allclose(brighter[..., MOMENTS], images.mean(axis=(2, 3)) * 3 + 7)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_flat_and_small_images_have_finite_features(size: int) -> None:
    images = np.random.default_rng(1).random((3, 2, size, size), dtype=np.float32)
    images[0, 0] = 5
    assert np.isfinite(image_features(images)).all()
    assert not of_channels(images)[0, 0, MOMENTS + 1 :].any()
    assert image_features(images)[0, -1] == 0


def cells(sources: int, wells: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and well of `each` cells in every well."""
    well = np.repeat(np.arange(sources * wells), each)
    return well // wells, well


def test_what_names_the_source_is_read_in_full_and_noise_at_chance() -> None:
    source, well = cells(4, 6, 10)
    noise = np.random.default_rng(0).normal(size=(len(source), 5))
    found = source_reading(noise + np.eye(5)[source] * 50, source, well)
    assert found.accuracy == (1.0, 240, "")
    assert found.chance.value == 0.25
    assert source_reading(noise, source, well).accuracy.value == pytest.approx(0.25, abs=0.1)


def test_a_look_of_its_well_does_not_name_the_source_of_a_cell() -> None:
    source, well = cells(3, 12, 8)
    look = np.random.default_rng(2).normal(size=(36, 40))[well]
    assert source_reading(look, source, well).accuracy.value < 0.55
    apart = source_reading(look, source, np.arange(len(well)))
    assert apart.accuracy.value == 1


def test_accuracy_is_balanced_over_sources() -> None:
    source = np.repeat([0, 1], [180, 20])
    features = np.zeros((200, 1))
    found = source_reading(features, source, np.arange(200))
    assert found.accuracy.value == found.chance.value == 0.5


def test_the_deal_of_wells_follows_the_seed() -> None:
    source, well = cells(3, 5, 6)
    features = np.random.default_rng(3).normal(size=(len(source), 4))
    values = [source_reading(features, source, well, seed).accuracy.value for seed in (0, 0, 1, 2)]
    assert values[0] == values[1]
    assert len(set(values)) > 1


def test_where_sources_are_wells_cells_are_divided() -> None:
    source, well = cells(4, 1, 20)
    features = np.eye(4)[source]
    found = source_reading(features, source, well).accuracy
    assert found.value == 1
    assert found.n == 80
    assert found.note == "no source has two wells, so cells of one well read each other"


def test_rows_that_no_probe_can_read_are_not_counted() -> None:
    source, well = cells(3, 4, 5)
    lone = np.append(source, [9, 9, -1, -1])
    wells = np.append(well, [50, 50, 51, 52])
    found = source_reading(np.eye(11)[lone], lone, wells)
    assert found.accuracy.value == 1
    assert found.accuracy.n == 60
    assert found.chance.value == pytest.approx(1 / 3)
    assert found.accuracy.note == "2 of 62 rows are of a source seen in one well alone"


@pytest.mark.parametrize("source", [[], [-1, -1], [3, 3, 3, 3], [0, 1]])
def test_nothing_is_read_of_fewer_than_two_sources(source: list[int]) -> None:
    codes = np.array(source, dtype=np.int64)
    found = source_reading(np.zeros((len(codes), 2)), codes, np.arange(len(codes)))
    for score in found:
        assert math.isnan(score.value)
        assert score == (score.value, 0, "fewer than two sources to tell apart")


def test_nothing_is_read_of_images_that_are_no_numbers(images: np.ndarray) -> None:
    broken = images.astype(float)
    broken[2, 1, 3, 3] = math.nan
    found = source_reading(image_features(broken), np.array([0, 0, 1, 1]), np.arange(4))
    assert math.isnan(found.accuracy.value)
    assert found.accuracy.note == "images hold pixels that are no finite number"
