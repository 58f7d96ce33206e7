"""Groups made alike, against the same written by hand in NumPy."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from deconfound.config import StandardiseName
from deconfound.data.loading import standardisation
from deconfound.data.loading.intensity import Intensity, fit_intensity, learn_unseen
from deconfound.data.loading.spectra import BANDS, cross_spectra
from deconfound.data.loading.standardisation import (
    FEWEST,
    MEASURED,
    SHARES,
    made_alike,
    with_tones,
)
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded, Roles
from deconfound.errors import InputWarning, UserError

KINDS: tuple[StandardiseName, ...] = ("moments", "quantiles", "robust")
GROUPS = np.repeat(["p", "q", "r"], [40, 30, 20])
TRAIN = np.arange(70)
KNOWN = Coded(np.repeat([0, 1, -1], [40, 30, 20]), ("p", "q"))
Values = npt.NDArray[np.float64]


def values_of(*shape: int) -> npt.NDArray[np.float32]:
    """(90, 2, …): groups differ in gain, offset and gamma, channels in scale."""
    stream = np.random.default_rng(0)
    values = stream.gamma(2.0, 1.0, (90, 2, *shape))
    gamma = np.repeat([1.0, 1.4, 0.7], [40, 30, 20]).reshape(-1, *(1,) * (1 + len(shape)))
    gain = np.repeat([1.0, 3.0, 0.4], [40, 30, 20]).reshape(gamma.shape)
    values = gain * values**gamma + 5 * gain
    values[:, 1] = 200 - 3 * values[:, 1]
    return values.astype(np.float32)


@pytest.fixture
def screen_of(make_screen: Callable[..., Screen], tmp_path: Path) -> Callable[..., Screen]:
    table = pd.DataFrame({"y": ["a", "b"] * 45, "e": GROUPS})

    def build(values: npt.NDArray[Any]) -> Screen:
        roles = Roles(label="y", environment=("e",))
        return make_screen(tmp_path / f"s{len(list(tmp_path.iterdir()))}", values, table, roles)

    return build


def fitted(screen: Screen, kind: StandardiseName, **given: Any) -> Intensity:
    return fit_intensity(screen, TRAIN, "none", "unit", 0, KNOWN, kind, **given)


def alike(intensity: Intensity, screen: Screen, codes: npt.NDArray[np.int64]) -> Values:
    pixels = torch.from_numpy(screen.read(np.arange(len(screen))))
    return intensity(pixels, torch.from_numpy(codes)).double().numpy()


def by_hand(kind: StandardiseName, values: Values, own: Values, target: Values) -> Values:
    """`values` of one channel, as their group's values `own` are to those of all, `target`."""
    if kind == "quantiles":
        knots, mapped = np.quantile(own, SHARES), np.quantile(target, SHARES)
        found = np.interp(values, knots, mapped)
        for end, inner, beyond in ((0, 1, values < knots[0]), (-1, -2, values > knots[-1])):
            slope = (mapped[inner] - mapped[end]) / (knots[inner] - knots[end])
            found[beyond] = mapped[end] + slope * (values[beyond] - knots[end])
        return found
    if kind == "moments":
        return (values - own.mean()) / own.std() * target.std() + target.mean()
    away = [np.median(np.abs(one - np.median(one))) for one in (own, target)]
    return (values - np.median(own)) / away[0] * away[1] + np.median(target)


@pytest.mark.parametrize("shape", [(5, 7), ()], ids=["images", "profiles"])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_made_alike_as_by_hand(
    screen_of: Callable[..., Screen], kind: StandardiseName, shape: tuple[int, ...]
) -> None:
    """Two groups of training, and one that training never saw."""
    values = values_of(*shape)
    screen = screen_of(values)
    intensity = fitted(screen, kind)
    assert intensity.statistics.shape == (3, MEASURED[kind], 2)
    every = screen.coded(["e"])
    codes = learn_unseen(intensity, screen, every, KNOWN.codes, np.arange(90), 0)
    assert codes.tolist() == np.repeat([0, 1, 2], [40, 30, 20]).tolist()
    found = alike(intensity, screen, codes)
    for channel in range(2):
        one = values[:, channel].astype(np.float64)
        for name in "pqr":
            rows = name == GROUPS
            expected = by_hand(kind, one[rows], one[rows], one[TRAIN])
            np.testing.assert_allclose(found[rows, channel], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_controls_alone_count_where_they_are_asked_for(
    screen_of: Callable[..., Screen], kind: StandardiseName
) -> None:
    values = values_of(5, 7)
    control = np.arange(90) % 3 > 0
    values[~control, 0] *= 1.5
    screen = screen_of(values)
    found = alike(fitted(screen, kind, reference=control), screen, KNOWN.codes)
    one = values[:, 0].astype(np.float64)
    for code in (0, 1):
        rows = KNOWN.codes == code
        expected = by_hand(kind, one[rows], one[rows & control], one[TRAIN][control[TRAIN]])
        np.testing.assert_allclose(found[rows, 0], expected, rtol=1e-4, atol=1e-3)


def test_rows_without_a_group_and_of_unknown_ones_are_left_alone(
    screen_of: Callable[..., Screen],
) -> None:
    values = values_of(5, 7)
    screen = screen_of(values)
    for kind in KINDS:
        found = alike(fitted(screen, kind), screen, KNOWN.codes)
        np.testing.assert_allclose(found[70:], values[70:], rtol=1e-4, atol=1e-4)


def test_a_tone_curve_never_falls_and_is_exact_at_its_knots() -> None:
    stream = np.random.default_rng(1)
    own, target = (np.sort(stream.gamma(2, scale, len(SHARES))) for scale in (1, 30))
    own[20:26] = own[20]  # many pixels are one value
    knots, ends = (torch.from_numpy(one).float()[None, :, None] for one in (own, target))
    wanted = target.copy()
    wanted[20:26] = (target[20] + target[25]) / 2
    statistics, group = torch.cat([knots, ends]), torch.zeros(1, dtype=torch.int64)
    at_knots = made_alike(knots.transpose(1, 2), statistics, group, "quantiles")
    assert torch.equal(at_knots[0, 0], torch.from_numpy(wanted).float())
    ascending = torch.linspace(-5, float(own[-1]) + 20, 5000)[None, None]
    curve = made_alike(ascending, statistics, group, "quantiles")[0, 0]
    assert (curve.diff() >= -1e-4).all()
    assert curve[0] < ends[0, 0]
    assert curve[-1] > ends[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_that_varies_by_rounding_in_a_group_is_shifted_alone(
    screen_of: Callable[..., Screen], kind: StandardiseName
) -> None:
    """One sd of it, 1e-8 of its mean, would turn other rows into numbers of order 1e8."""
    values = values_of(5, 7)
    values[:40, 0] = 1_000 + np.float32(6e-5) * (values[:40, 0] > 7)
    screen = screen_of(values)
    intensity = fitted(screen, kind)
    shifted = values.copy()
    shifted[:40, 0] += 3
    found = alike(intensity, screen, KNOWN.codes)
    assert np.isfinite(found).all()
    moved = alike(intensity, screen_of(shifted), KNOWN.codes)
    np.testing.assert_allclose((moved - found)[:40, 0], 3, rtol=1e-3)


def test_where_half_of_the_pixels_are_one_value_the_mean_deviation_counts(
    screen_of: Callable[..., Screen],
) -> None:
    values = values_of(5, 7)
    values[:, 0] = np.where(np.random.default_rng(2).random((90, 5, 7)) < 0.7, 2, values[:, 0])
    screen = screen_of(values)
    found = alike(fitted(screen, "robust"), screen, KNOWN.codes)
    one = values[:, 0].astype(np.float64)
    away = [np.abs(part - np.median(part)).mean() for part in (one[:40], one[TRAIN])]
    assert np.median(one[:40]) == np.median(one[TRAIN]) == 2
    np.testing.assert_allclose(found[:40, 0], (one[:40] - 2) / away[0] * away[1] + 2, rtol=1e-4)


@pytest.mark.parametrize("kind", (*KINDS, "spectra"))
def test_an_image_is_the_same_in_every_batch(
    screen_of: Callable[..., Screen], kind: StandardiseName, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = screen_of(values_of(5, 7))
    intensity = fitted(screen, kind)
    whole = alike(intensity, screen, KNOWN.codes)
    monkeypatch.setattr(standardisation, "BLOCK", 7 * intensity.statistics[0].numel())
    assert np.array_equal(alike(intensity, screen, KNOWN.codes), whole)
    for rows in ([3], [69, 3, 88], [*range(30, 61)]):
        pixels, codes = torch.from_numpy(screen.read(rows)), torch.from_numpy(KNOWN.codes[rows])
        assert np.array_equal(intensity(pixels, codes).double().numpy(), whole[rows])


def test_a_group_with_too_few_images_takes_the_statistics_of_training_and_is_named(
    screen_of: Callable[..., Screen],
) -> None:
    screen = screen_of(values_of(5, 7))
    few = Coded(np.where(np.arange(90) < FEWEST - 1, 0, 1), ("p", "q"))
    with pytest.warns(InputWarning, match=r"fewer than 16 rows to standardise by of p \(15\): "):
        intensity = fit_intensity(screen, TRAIN, "none", "unit", 0, few, "moments")
    assert torch.equal(intensity.statistics[0], intensity.statistics[-1])
    assert not torch.equal(intensity.statistics[1], intensity.statistics[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = few._replace(codes=np.where(np.arange(90) < FEWEST, 0, 1))
        fit_intensity(screen, TRAIN, "none", "unit", 0, enough, "moments")
    reference = np.arange(90) < FEWEST - 1
    with pytest.raises(UserError, match="15 training rows count to standardise by; expected 16"):
        fit_intensity(screen, TRAIN, "none", "unit", 0, KNOWN, "moments", reference)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_measured_on_a_bounded_sample_that_its_name_and_the_seed_draw(
    screen_of: Callable[..., Screen], kind: StandardiseName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standardisation, "ROWS", 20)
    monkeypatch.setattr(standardisation, "PIXELS", 10)
    monkeypatch.setattr(standardisation, "READ", 3)
    monkeypatch.setattr(standardisation, "BLOCK", 1)
    screen = screen_of(values_of(5, 7))
    read: list[int] = []
    plainly = Screen.read

    def noted(self: Screen, rows: Any, *words: Any) -> Any:
        read.append(len(rows))
        return plainly(self, rows, *words)

    monkeypatch.setattr(Screen, "read", noted)
    first = fitted(screen, kind)
    assert max(read) == 3
    assert sum(read) == 3 * 20
    other = Coded(np.where(KNOWN.codes == 1, 0, -1), ("q",))
    alone = fit_intensity(screen, TRAIN, "none", "unit", 0, other, kind)
    assert torch.equal(first.statistics[1], alone.statistics[0])
    seeded = fit_intensity(screen, TRAIN, "none", "unit", 1, KNOWN, kind)
    assert not torch.equal(first.statistics[1], seeded.statistics[1])


def test_scaling_follows_and_the_transform_comes_first(screen_of: Callable[..., Screen]) -> None:
    values = values_of(5, 7)
    screen = screen_of(values)
    intensity = fit_intensity(screen, TRAIN, "arcsinh", "standardise", 0, KNOWN, "moments")
    found = alike(intensity, screen, KNOWN.codes)
    np.testing.assert_allclose(found[TRAIN].mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found[TRAIN].std(axis=(0, 2, 3)), 1, atol=1e-5)
    one = np.arcsinh(values[:, 0].astype(np.float64))
    expected = (one[:40] - one[:40].mean()) / one[:40].std()
    np.testing.assert_allclose(found[:40, 0], expected, atol=1e-4)


def blurred_groups() -> npt.NDArray[np.float32]:
    """(90, 2, 12, 12): `values_of`, with a leak between channels in one group, a blur in one."""
    values = values_of(12, 12)
    values[40:70, 1] += 0.5 * values[40:70, 0]
    values[70:] = (values[70:] + np.roll(values[70:], 1, axis=2) + np.roll(values[70:], 1, 3)) / 3
    return values


def test_spectra_of_groups_become_alike(screen_of: Callable[..., Screen]) -> None:
    """Also those of a group that training never saw, and only by its controls if so asked."""
    values = blurred_groups()
    screen = screen_of(values)
    for control in (None, np.arange(90) % 6 > 0):
        intensity = fitted(screen, "spectra", reference=control)
        codes = learn_unseen(
            intensity, screen, screen.coded(["e"]), KNOWN.codes,
            np.arange(90) if control is None else np.flatnonzero(control), 0,
        )  # fmt: skip
        counted = np.ones(90, dtype=bool) if control is None else control
        found = torch.from_numpy(alike(intensity, screen, codes)).float()
        tones = intensity.statistics[-1, : len(SHARES)]
        wanted = intensity.statistics[-1, len(SHARES) :].view(BANDS, 2, 2)
        powers = [wanted.new_zeros(0), *(torch.from_numpy(values), found)]
        for code in range(3):
            rows = torch.from_numpy((codes == code) & counted)
            before, after = (
                cross_spectra(with_tones(one[rows], tones)).mean(dim=0) for one in powers[1:]
            )
            away = [(one - wanted).norm() / wanted.norm() for one in (before, after)]
            assert away[1] < 0.15
            assert away[1] < 0.2 * away[0]
            middle = found[rows].transpose(0, 1).flatten(1).median(dim=1).values
            torch.testing.assert_close(middle, tones[len(SHARES) // 2], rtol=0.05, atol=0.1)


def test_spectra_leave_alone_what_has_no_group_or_too_few_images(
    screen_of: Callable[..., Screen],
) -> None:
    values = blurred_groups()
    screen = screen_of(values)
    found = alike(fitted(screen, "spectra"), screen, KNOWN.codes)
    np.testing.assert_allclose(found[70:], values[70:], rtol=1e-3, atol=1e-2)
    few = Coded(np.where(np.arange(90) < FEWEST - 1, 0, 1), ("p", "q"))
    with pytest.warns(InputWarning, match=r"fewer than 16 rows to standardise by of p \(15\)"):
        intensity = fit_intensity(screen, TRAIN, "none", "unit", 0, few, "spectra")
    found = alike(intensity, screen, few.codes)
    np.testing.assert_allclose(found[: FEWEST - 1], values[: FEWEST - 1], rtol=1e-3, atol=1e-2)


def test_spectra_of_profiles_are_refused(screen_of: Callable[..., Screen]) -> None:
    with pytest.raises(UserError, match="--standardise spectra is for images; profiles take"):
        fitted(screen_of(values_of()), "spectra")


@pytest.mark.parametrize("kind", (*KINDS, "spectra"))
def test_values_that_are_not_finite_are_refused(
    screen_of: Callable[..., Screen], kind: StandardiseName
) -> None:
    values = values_of(5, 7)
    values[75, 0, 2, 3] = np.nan
    screen = screen_of(values)
    intensity = fitted(screen, kind)
    with pytest.raises(UserError, match="values of r that are to be standardised by are not fin"):
        learn_unseen(intensity, screen, screen.coded(["e"]), KNOWN.codes, np.arange(90), 0)
