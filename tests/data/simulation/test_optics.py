"""Optics of simulated environments: each effect acts as named, and draws nest."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deconfound.data.simulation.optics import (
    apply_optics,
    digitised,
    draw_optics,
    no_optics,
    optics_from,
)

CENTRE = np.zeros((2, 2), dtype=np.float32)
NONE = no_optics(4)


def images(seed: int = 0) -> Any:
    return 0.1 + 0.3 * np.random.default_rng(seed).random((2, 4, 32, 32), dtype=np.float32)


def applied(field: Any = CENTRE, noise: Any = None, **effects: Any) -> Any:
    noise = np.zeros((2, 4, 32, 32), dtype=np.float32) if noise is None else noise
    return apply_optics(images(), replace(NONE, **effects), field, noise)


def test_no_optics_leaves_the_image_as_it_is() -> None:
    noise = np.random.default_rng(1).standard_normal((2, 4, 32, 32), dtype=np.float32)
    np.testing.assert_allclose(applied(noise=noise), images(), rtol=1e-6)


def test_gain_scales_its_own_channel() -> None:
    expected = images() * np.array([2, 1, 1, 0.5], dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(applied(gain=(2.0, 1.0, 1.0, 0.5)), expected, rtol=1e-6)


def test_gamma_is_the_exponent() -> None:
    np.testing.assert_allclose(applied(gamma=(2.0,) * 4), images() ** 2, rtol=1e-5)


def test_background_adds_light() -> None:
    np.testing.assert_allclose(applied(background=(0.2,) * 4), images() + 0.2, rtol=1e-5)


def test_bleed_adds_a_part_of_another_channel() -> None:
    bleed = np.zeros((4, 4))
    bleed[1, 0] = 0.25
    out = applied(bleed=tuple(map(tuple, bleed)))
    np.testing.assert_allclose(out[:, 1], images()[:, 1] + 0.25 * images()[:, 0], rtol=1e-5)
    np.testing.assert_allclose(out[:, [0, 2, 3]], images()[:, [0, 2, 3]], rtol=1e-6)


def test_blur_lowers_fine_detail_and_keeps_a_flat_image() -> None:
    def detail(image: Any) -> float:
        power = np.abs(np.fft.rfft2(image - image.mean(axis=(2, 3), keepdims=True))) ** 2
        return float(power[:, :, 8:25].sum())

    assert detail(applied(blur=(1.5,) * 4)) < 0.05 * detail(images())
    flat = np.full((1, 4, 32, 32), 0.3, dtype=np.float32)
    out = apply_optics(flat, replace(NONE, blur=(1.5,) * 4), CENTRE[:1], np.zeros_like(flat))
    np.testing.assert_allclose(out, 0.3, rtol=1e-5)


def test_the_vignette_darkens_the_corner_of_the_field() -> None:
    corner = np.array([[0, 0], [1, 1]], dtype=np.float32)
    out = applied(field=corner, vignette=(0.4,) * 4).mean(axis=(1, 2, 3))
    plain = images().mean(axis=(1, 2, 3))
    assert out[0] / plain[0] == pytest.approx(1, abs=0.01)
    assert out[1] / plain[1] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(("effect", "axis"), [("gradient_x", 0), ("gradient_y", 1)])
def test_a_gradient_brightens_one_side_of_field_and_crop(effect: str, axis: int) -> None:
    sides = np.zeros((2, 2), dtype=np.float32)
    sides[:, axis] = -1, 1
    ratio = applied(field=sides, **{effect: (0.2,) * 4}) / images()
    assert ratio[0].mean() == pytest.approx(0.8, abs=1e-3)
    assert ratio[1].mean() == pytest.approx(1.2, abs=1e-3)
    along = ratio[1].mean(axis=(0, 1) if axis == 0 else (0, 2))
    assert (np.diff(along) > 0).all()


def test_read_noise_is_everywhere_and_shot_noise_grows_with_light() -> None:
    noise = np.random.default_rng(1).standard_normal((2, 4, 32, 32), dtype=np.float32)
    np.testing.assert_allclose(
        applied(noise=noise, read=(0.01,) * 4) - images(), 0.01 * noise, atol=1e-6
    )
    np.testing.assert_allclose(
        applied(noise=noise, shot=(0.05,) * 4) - images(),
        0.05 * np.sqrt(images()) * noise,
        atol=1e-6,
    )


def test_light_saturates_and_is_digitised_to_the_full_scale() -> None:
    bright = applied(gain=(100.0,) * 4)
    assert bright.max() == 1
    assert digitised(bright, "uint8").min() == 255
    assert digitised(bright, "uint16").min() == 65535
    assert digitised(np.zeros((1, 1, 1, 1), dtype=np.float32), "uint16").max() == 0


def test_no_technical_variation_is_no_optics() -> None:
    assert draw_optics(("S1", "P1"), (1.0, 0.5), 4, 0.0, 0) == NONE


def test_optics_survive_json() -> None:
    import json

    optics = draw_optics(("S1", "P1"), (1.0, 0.5), 4, 1.0, 0)
    assert optics_from(json.loads(json.dumps(optics.as_dict()))) == optics


def test_groups_that_are_shared_share_their_draw() -> None:
    def log_gain(*environment: str, spread: tuple[float, ...] = (1.0, 0.3, 0.1)) -> Any:
        return np.log(draw_optics(environment, spread, 4, 1.0, 0).gain)

    def distance(first: Any, second: Any) -> float:
        return float(np.abs(first - second).mean())

    series = [log_gain(f"S{k}", "P1", "A1") for k in range(40)]
    plates = [log_gain("S1", f"P{k}", "A1") for k in range(40)]
    sections = [log_gain("S1", "P1", f"A{k}") for k in range(40)]
    spread = [
        np.mean([distance(a, b) for a in group for b in group])
        for group in (series, plates, sections)
    ]
    assert spread[0] > 2 * spread[1] > 4 * spread[2] > 0
    alone = (1.0, 0.0, 0.0)
    np.testing.assert_array_equal(
        log_gain("S1", "P1", "A1", spread=alone), log_gain("S1", "P2", "A2", spread=alone)
    )
