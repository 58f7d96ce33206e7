"""Phenotypes and clean images of simulated cells."""

from typing import Any

import numpy as np
import pytest

from deconfound.data.simulation.cells import CHANNELS, render_cells
from deconfound.data.simulation.frame import POSE
from deconfound.data.simulation.phenotype import TRAIT_NAMES, TRAITS, draw_phenotypes, draw_traits


def values(cells: int, **changed: float) -> dict[str, Any]:
    middle = {trait.name: (trait.low + trait.high) / 2 for trait in TRAITS}
    centred = middle | dict.fromkeys(POSE, 0.0) | changed
    return {name: np.full(cells, value, dtype=np.float32) for name, value in centred.items()}


def rendered(cells: int = 24, size: int = 48, **changed: float) -> Any:
    return render_cells(values(cells, **changed), 0, range(cells), size)


def ends(name: str) -> tuple[float, float]:
    trait = next(trait for trait in TRAITS if trait.name == name)
    return trait.low, trait.high


def fineness(image: Any) -> float:
    """Mean spatial frequency of (N, H, W), weighted by power."""
    power = np.abs(np.fft.fft2(image)) ** 2
    power[:, 0, 0] = 0
    step = np.fft.fftfreq(image.shape[-1])
    return float((power * np.hypot(step[:, None], step)).sum() / power.sum())


def anisotropy(image: Any) -> float:
    """Mean coherence of the gradients of (N, H, W): 0 no preferred direction, 1 all parallel."""
    dy, dx = np.gradient(image, axis=(1, 2))
    xx, yy, xy = ((a * b).sum(axis=(1, 2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    return float((np.hypot(xx - yy, 2 * xy) / (xx + yy)).mean())


def test_phenotypes_leave_the_control_alone_and_differ_among_themselves() -> None:
    shift = draw_phenotypes(9, 1.5, seed=0)
    assert shift.shape == (9, len(TRAITS))
    assert (shift[0] == 0).all()
    assert ((shift[1:] != 0).sum(axis=1) == 6).all()
    assert set(np.unique(shift)) == {-1.5, 0.0, 1.5}
    gaps = np.abs(shift[:, None] - shift[None]).sum(axis=2) + 99 * np.eye(9)
    assert gaps.min() >= 6 * 1.5
    assert not np.array_equal(shift, draw_phenotypes(9, 1.5, seed=1))


def test_traits_stay_in_their_range_and_vary_from_cell_to_cell() -> None:
    shift = np.repeat(draw_phenotypes(5, 4.0, seed=0), 100, axis=0)
    traits = draw_traits(shift, 1.0, seed=0)
    for column, trait in enumerate(TRAITS):
        assert trait.low <= traits[:, column].min() < traits[:, column].max() <= trait.high
    still = draw_traits(np.zeros((3, len(TRAITS)), dtype=np.float32), 0.0, seed=0)
    np.testing.assert_allclose(still, [[(t.low + t.high) / 2 for t in TRAITS]] * 3, rtol=1e-6)


def test_a_clean_image_is_light_in_every_channel() -> None:
    image = rendered()
    assert image.shape == (24, len(CHANNELS), 48, 48)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert (image.max(axis=(2, 3)) > 0.1).all()


def test_a_cell_is_the_same_whatever_its_companions() -> None:
    together = rendered(8)
    alone = render_cells(values(1), 0, [5], 48)
    np.testing.assert_array_equal(alone[0], together[5])
    assert not np.array_equal(together[4], together[5])


def test_size_changes_the_sampling_not_the_cell() -> None:
    small, large = rendered(4, 48), rendered(4, 144)
    shrunk = large.reshape(4, 4, 48, 3, 48, 3).mean(axis=(3, 5))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.97


def test_pose_moves_and_turns_the_cell() -> None:
    turned, upright = (rendered(4, Angle=angle)[:, :2] > 0.1 for angle in (np.pi, 0.0))
    assert (turned[:, :, ::-1, ::-1] == upright).mean() > 0.95 > (turned == upright).mean()
    right = rendered(4, OffsetX=0.25)[:, 0].mean(axis=1)
    centre = rendered(4)[:, 0].mean(axis=1)
    column = np.arange(48)
    moved = (right @ column) / right.sum(axis=1) - (centre @ column) / centre.sum(axis=1)
    np.testing.assert_allclose(moved, 0.25 * 24, atol=1)


@pytest.mark.parametrize(
    ("trait", "measure"),
    [
        ("NuclearRadius", lambda image: (image[:, 0] > 0.1).mean()),
        ("NuclearEccentricity", lambda image: anisotropy(image[:, 0])),
        ("NuclearLobes", lambda image: fineness(image[:, 0] > 0.1)),
        ("CellSpread", lambda image: (image[:, 1] > 0.03).mean()),
        ("ActinOrder", lambda image: anisotropy(image[:, 1])),
        ("ActinFrequency", lambda image: fineness(image[:, 1])),
        ("TubulinFrequency", lambda image: fineness(image[:, 2])),
        ("MitoNumber", lambda image: image[:, 3].mean()),
        ("MitoSize", lambda image: -fineness(image[:, 3])),
        ("MitoClustering", lambda image: -(image[:, 3] > 0.1).mean()),
    ],
)
def test_a_trait_shows_in_its_channel(trait: str, measure: Any) -> None:
    low, high = ends(trait)
    third = (high - low) / 3
    measured = [measure(rendered(**{trait: low + k * third})) for k in range(4)]
    assert (np.diff(measured) > 0).all(), measured


def test_ordered_tubulin_gathers_near_the_nucleus() -> None:
    axis = (np.arange(48) + 0.5) / 24 - 1
    distance = np.hypot(axis[:, None], axis)

    def reach(order: float) -> float:
        light = rendered(TubulinOrder=order)[:, 2]
        return float((light * distance).sum() / light.sum())

    reaches = [reach(order) for order in (0.0, 0.5, 1.0)]
    assert reaches[0] > reaches[1] > reaches[2]


def test_traits_are_those_that_the_table_names() -> None:
    assert len(set(TRAIT_NAMES)) == len(TRAIT_NAMES) == 11
