from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from deconfound.config import TransformName
from deconfound.data.loading import intensity as intensity_module
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded, Roles
from deconfound.errors import UserError

MakeScreen = Callable[..., Screen]
ROLES = Roles(label="y", environment=("e",))
TRAIN = np.arange(0, 40, dtype=np.int64)


def images_of(dtype: str, seed: int = 0) -> npt.NDArray[np.generic]:
    """(60, 2, 5, 7): two channels of different mean and spread."""
    stream = np.random.default_rng(seed)
    values = np.stack(
        [stream.gamma(2, 8, (60, 5, 7)), 90 + stream.normal(0, 20, (60, 5, 7))], axis=1
    ).clip(0, 255)
    return (values / 255 if dtype == "float32" else values).astype(dtype)


@pytest.fixture
def screen_of(make_screen: MakeScreen, tmp_path: Path) -> Callable[..., Screen]:
    table = pd.DataFrame({"y": ["a"] * 60, "e": ["p"] * 60})

    def build(images: npt.NDArray[np.generic]) -> Screen:
        return make_screen(tmp_path / f"s{len(list(tmp_path.iterdir()))}", images, table, ROLES)

    return build


def scaled(intensity: Intensity, images: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return intensity(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("transform", ["none", "arcsinh"])
def test_training_rows_get_mean_0_and_deviation_1(
    screen_of: Callable[..., Screen], dtype: str, transform: str
) -> None:
    images = images_of(dtype)
    fitted = fit_intensity(screen_of(images), TRAIN, transform, "standardise", 0)  # type: ignore[arg-type]
    values = scaled(fitted, images[TRAIN])
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_other_rows_decide_nothing(screen_of: Callable[..., Screen]) -> None:
    images = images_of("uint16")
    mutated = images.copy()
    mutated[40:] = np.random.default_rng(9).integers(0, 60_000, mutated[40:].shape)
    first, second = (
        fit_intensity(screen_of(one), TRAIN, "arcsinh", "standardise", 0)
        for one in (images, mutated)
    )
    assert torch.equal(first.offset, second.offset)
    assert torch.equal(first.scale, second.scale)
    mutated[39] = 0
    third = fit_intensity(screen_of(mutated), TRAIN, "arcsinh", "standardise", 0)
    assert not torch.equal(first.offset, third.offset)


def test_a_sample_of_the_rows_is_drawn_by_the_seed(
    screen_of: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intensity_module, "SAMPLE", 8)
    screen = screen_of(images_of("uint8"))
    first, again, other = (
        fit_intensity(screen, TRAIN, "none", "standardise", seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.offset, again.offset)
    assert not torch.equal(first.offset, other.offset)


@pytest.mark.parametrize(("dtype", "largest"), [("uint8", 255), ("uint16", 65_535), ("float32", 1)])
def test_unit_divides_by_the_largest_value_of_the_type(
    screen_of: Callable[..., Screen], dtype: str, largest: int
) -> None:
    images = images_of(dtype)
    images[0, 0, 0, 0] = largest
    fitted = fit_intensity(screen_of(images), TRAIN, "none", "unit", 0)
    values = scaled(fitted, images)
    assert values[0, 0, 0, 0] == 1
    expected = images.astype(np.float32) * np.float32(1 / largest)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arcsinh_is_that_of_numpy(dtype: str) -> None:
    images = images_of(dtype)
    values = scaled(Intensity(2, "arcsinh"), images)
    np.testing.assert_allclose(values, np.arcsinh(images.astype(np.float64)), rtol=2e-6)


def test_stored_pixels_are_left_alone() -> None:
    pixels = torch.from_numpy(images_of("float32"))
    before = pixels.clone()
    intensity = Intensity(2, "arcsinh")
    intensity.offset.fill_(3.0)
    intensity(pixels)
    assert torch.equal(pixels, before)


def test_an_even_channel_gives_no_infinity(screen_of: Callable[..., Screen]) -> None:
    images = images_of("uint8")
    images[:, 1] = 7
    fitted = fit_intensity(screen_of(images), TRAIN, "none", "standardise", 0)
    np.testing.assert_allclose(scaled(fitted, images)[:, 1], 0)


@pytest.mark.parametrize("transform", ["none", "arcsinh"])
def test_a_channel_that_varies_by_rounding_alone_is_0_in_every_row(
    screen_of: Callable[..., Screen], transform: TransformName
) -> None:
    """One sd of it, 1e-8 of its mean, would turn the other rows into numbers of order 1e8."""
    images = images_of("float32")
    images[TRAIN, 1] = 1_000 + np.float32(6e-5) * (images[TRAIN, 1] > 0.4)
    images[40:, 1] = 1_005
    fitted = fit_intensity(screen_of(images), TRAIN, transform, "standardise", 0)
    values = scaled(fitted, images)
    assert (values[:, 1] == 0).all()
    np.testing.assert_allclose(values[TRAIN, 0].std(), 1, atol=1e-5)
    back = fitted.inverse(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(back[:, 1], 1_000, rtol=1e-4)
    np.testing.assert_allclose(back[:, 0], images[:, 0], rtol=1e-4, atol=1e-6)


def test_faint_images_get_deviation_1(screen_of: Callable[..., Screen]) -> None:
    images = images_of("float32") * np.float32(1e-7)
    fitted = fit_intensity(screen_of(images), TRAIN, "none", "standardise", 0)
    np.testing.assert_allclose(scaled(fitted, images[TRAIN]).std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_unit_after_arcsinh_is_refused(screen_of: Callable[..., Screen]) -> None:
    with pytest.raises(UserError, match="--transform none"):
        fit_intensity(screen_of(images_of("uint8")), TRAIN, "arcsinh", "unit", 0)


def test_scbd_is_arcsinh_less_seven_by_seven(screen_of: Callable[..., Screen]) -> None:
    images = np.linspace(0, 60_000, 60 * 70).reshape(60, 2, 5, 7).astype(np.uint16)
    fitted = fit_intensity(screen_of(images), TRAIN, "arcsinh", "scbd", seed=0)
    expected = (np.arcsinh(images.astype(np.float64)) - 7) / 7
    np.testing.assert_allclose(scaled(fitted, images), expected, rtol=1e-6, atol=1e-6)
    back = fitted.inverse(torch.from_numpy(expected.astype(np.float32))).numpy()
    np.testing.assert_allclose(back, images, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("transform", ["none", "percentile"])
def test_scbd_needs_arcsinh(screen_of: Callable[..., Screen], transform: TransformName) -> None:
    with pytest.raises(UserError, match="--scaling scbd is for images after --transform arcsinh"):
        fit_intensity(screen_of(images_of("uint8")), TRAIN, transform, "scbd", seed=0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_percentile_undoes_the_gain_and_the_offset_of_an_image(dtype: str) -> None:
    images = images_of(dtype).astype(np.float32)
    brighter = images * np.arange(2.0, 2.0 + len(images), dtype=np.float32)[:, None, None, None] + 3
    values, again = (scaled(Intensity(2, "percentile"), each) for each in (images, brighter))
    np.testing.assert_allclose(again, values, atol=1e-4)
    low, high = np.quantile(images[0, 1], [0.001, 0.999])
    expected = ((images[0, 1] - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(values[0, 1], expected, atol=1e-5)


def test_percentile_of_a_flat_channel_is_0() -> None:
    flat = np.full((2, 2, 4, 4), 9, np.uint8)
    assert not scaled(Intensity(2, "percentile"), flat).any()


def grouped(
    screen_of: Callable[..., Screen], images: npt.NDArray[np.generic]
) -> tuple[Intensity, Coded]:
    """Percentiles shared by the plates p (rows 0 … 19), q (20 … 39) and, not fitted, r."""
    group = Coded(np.repeat([0, 1, -1], 20), ("p", "q"))
    return fit_intensity(screen_of(images), TRAIN, "percentile", "unit", 0, group), group


def test_percentiles_of_a_plate_are_those_of_its_training_rows(
    screen_of: Callable[..., Screen],
) -> None:
    images = images_of("uint16")
    images[20:40] = images[20:40] * 3 + 7
    fitted, group = grouped(screen_of, images)
    values = fitted(torch.from_numpy(images), torch.from_numpy(group.codes)).numpy()
    for rows, known in ((slice(0, 20),) * 2, (slice(20, 40),) * 2, (slice(40, 60), slice(0, 40))):
        for channel in range(2):
            low, high = np.quantile(images[known, channel], [0.001, 0.999])
            expected = ((images[rows, channel] - low) / (high - low)).clip(0, 1)
            np.testing.assert_allclose(values[rows, channel], expected, atol=1e-5)


def test_held_out_rows_decide_no_percentile(screen_of: Callable[..., Screen]) -> None:
    images = images_of("uint8")
    mutated = images.copy()
    mutated[40:] = 255 - mutated[40:]
    before, after = (grouped(screen_of, each)[0].limits for each in (images, mutated))
    assert torch.equal(before, after)
    mutated[0] = 255
    assert not torch.equal(before, grouped(screen_of, mutated)[0].limits)
