"""Images brought to another size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deconfound.arrays import Pixels
from deconfound.data.readers.resizing import Fit, fitted, resampled
from deconfound.errors import UserError


def noise(*shape: int, dtype: str = "uint8") -> Pixels:
    rng = np.random.default_rng(1)
    if dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def test_shrinking_takes_the_mean_of_the_area() -> None:
    values = noise(2, 8, 8, dtype="uint16")
    means = values.astype(np.float64).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4))
    found = resampled(values, (4, 4))
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, means, atol=0.501)
    floats = values.astype(np.float32)
    np.testing.assert_allclose(resampled(floats, (4, 4)), means, rtol=1e-6)
    np.testing.assert_allclose(
        resampled(floats, (3, 3)).mean((1, 2)), floats.mean((1, 2)), rtol=1e-5
    )


def test_growing_is_linear_between_pixel_centres() -> None:
    values = noise(2, 5, 7, dtype="float32")
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (11, 11), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(resampled(values, (11, 11)), expected.numpy(), atol=1e-5)


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from(["uint8", "uint16"]),
    st.integers(0, 255),
)
def test_resizing_keeps_a_flat_image_flat(
    height: int, width: int, size: int, dtype: str, value: int
) -> None:
    top = value * 257 if dtype == "uint16" else value
    found = resampled(np.full((1, height, width), top, dtype), (size, size))
    assert found.shape == (1, size, size)
    assert found.dtype == np.dtype(dtype)
    assert (found == top).all()


def test_padding_and_cropping_keep_every_pixel() -> None:
    values = noise(2, 5, 6, dtype="uint16")
    padded = fitted(values, (8, 8), "pad")
    np.testing.assert_array_equal(padded[:, 1:6, 1:7], values)
    assert padded.sum() == values.sum()
    assert padded.dtype == values.dtype
    np.testing.assert_array_equal(fitted(padded, (5, 6), "crop"), values)
    np.testing.assert_array_equal(fitted(values, (4, 3), "crop"), values[:, :4, 1:4])
    for fit in ("pad", "crop", "resize"):
        np.testing.assert_array_equal(fitted(values, (5, 6), fit), values)
    np.testing.assert_array_equal(fitted(values, (4, 4), "resize"), resampled(values, (4, 4)))


@pytest.mark.parametrize(("fit", "sides"), [("pad", (4, 9)), ("crop", (9, 4))])
def test_what_does_not_fit_is_refused(fit: Fit, sides: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"5 × 6 pixels do not .* --fit {fit} .* --size"):
        fitted(noise(2, 5, 6), sides, fit)
