"""Effects of a well's position: gradients over rows and columns, and exact counterfactuals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.counterfactual import counterfactual, new_environment
from deconfound.data.simulation.inject import InjectConfig, inject
from deconfound.data.simulation.optics import apply_optics, no_optics, optics_from
from deconfound.data.simulation.position import at_place, well_places, with_position
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.data.tables.table import joined

GRID = {"cells": 240, "labels": 3, "series": 2, "plates": 2, "sections": 2, "wells": 4, "size": 24}
OPS = {
    "layout": "ops", "cells": 160, "genes": 8, "complexes": 2, "guides": 2, "wells": 8,
    "plates": 2, "size": 24,
}  # fmt: skip


def made(out: Path, options: dict[str, Any], **changed: Any) -> Screen:
    config = SimulateConfig.model_validate(options | changed)
    return simulate(out, config=config, quiet=True)


def test_places_run_from_minus_one_to_one_over_the_wells_in_use() -> None:
    wells = pd.Series(["A01", "A03", "C01", "B02", "elsewhere"])
    found = well_places(wells).tolist()
    assert found == [[-1, -1], [1, -1], [-1, 1], [0, 0], [0, 0]]
    assert well_places(pd.Series(["A01", "A01"])).tolist() == [[0, 0], [0, 0]]


def test_gain_and_background_change_over_the_plate() -> None:
    optics = with_position(no_optics(2), ("S1", "P1"), (1.0, 1.0), 1.0, seed=0)
    assert with_position(no_optics(2), ("S1", "P1"), (1.0, 1.0), 0.0, seed=0) == no_optics(2)
    other = with_position(no_optics(2), ("S1", "P2"), (1.0, 1.0), 1.0, seed=0)
    assert other.gain_across != optics.gain_across
    clean = np.full((2, 2, 8, 8), 0.3, dtype=np.float32)
    field, noise = np.zeros((2, 2), dtype=np.float32), np.zeros_like(clean)
    place = np.array([[0, 0], [1, -1]], dtype=np.float32)
    image = apply_optics(clean, optics, field, noise, place)
    np.testing.assert_allclose(image[0], 0.3, rtol=1e-6)
    gain = np.exp(np.array(optics.gain_across) - np.array(optics.gain_down))
    added = np.array(optics.background_across) - np.array(optics.background_down)
    expected = 0.3 * gain + np.maximum(added, 0)  # no background to take from
    np.testing.assert_allclose(image[1, :, 0, 0], expected, rtol=1e-5)
    folded = at_place(optics, place[1])
    np.testing.assert_allclose(apply_optics(clean, folded, field, noise)[1], image[1], rtol=1e-5)
    assert optics_from(optics.as_dict()) == optics


@pytest.mark.parametrize("options", [GRID, OPS], ids=["grid", "ops"])
def test_none_is_the_default_and_leaves_no_trace(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, none = made(tmp_path / "a", options), made(tmp_path / "b", options, position_effect=0)
    rows = np.arange(len(plain))
    np.testing.assert_array_equal(plain.read(rows), none.read(rows))
    assert "gain_across" not in next(iter(plain.provenance["environments"].values()))
    moved = made(tmp_path / "c", options, position_effect=1)
    assert not np.array_equal(moved.read(rows), plain.read(rows))


@pytest.mark.parametrize("options", [GRID, OPS], ids=["grid", "ops"])
def test_own_environment_returns_the_stored_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    screen = made(tmp_path / "screen", options, position_effect=1)
    environment = joined(screen.table, screen.roles.environment)
    for name in environment.unique()[:3].tolist():
        rows = np.flatnonzero((environment == name).to_numpy(bool))
        np.testing.assert_array_equal(counterfactual(screen, rows, name), screen.read(rows))


def test_a_cell_keeps_its_place_and_takes_the_gradient_of_the_plate_it_is_put_on(
    tmp_path: Path,
) -> None:
    effect = {"technical": 1.0, "plate_spread": 2.0}
    with_it = made(tmp_path / "a", GRID, position_effect=2, **effect)
    without = made(tmp_path / "b", GRID, **effect)
    place = well_places(with_it.table["Metadata_Well"])
    rows = np.arange(len(with_it))
    optics = optics_from(with_it.provenance["environments"]["S2/P1/A1"])
    moved = counterfactual(with_it, rows, "S2/P1/A1").astype(float).mean(axis=(2, 3))
    still = counterfactual(without, rows, "S2/P1/A1").astype(float).mean(axis=(2, 3))
    gain, added = optics.by_place(place)
    brighter = (moved - still)[:, 0]
    stain = still[:, 0] - 255 * optics.background[0]
    expected = stain * (gain[:, 0] - 1) + 255 * added[:, 0]
    assert np.corrcoef(brighter, expected)[0, 1] > 0.95
    np.testing.assert_array_equal(
        counterfactual(with_it, rows, "none"), counterfactual(without, rows, "none")
    )


def test_a_cell_of_a_pool_takes_the_place_of_the_well_it_is_put_in(tmp_path: Path) -> None:
    screen = made(tmp_path / "screen", OPS, position_effect=2)
    optics = {n: optics_from(o) for n, o in screen.provenance["environments"].items()}
    assert not any(one.gain_across for one in optics.values())
    plain = made(tmp_path / "plain", OPS)
    bare = {n: optics_from(o) for n, o in plain.provenance["environments"].items()}
    rise = [np.log(optics[f"P1/A0{w}"].gain) - np.log(bare[f"P1/A0{w}"].gain) for w in range(1, 5)]
    np.testing.assert_allclose(np.diff(rise, n=2, axis=0), 0, atol=1e-5)
    assert np.abs(np.diff(rise, axis=0)).max() > 0.01
    assert new_environment(screen, "a").gain_across == ()


def test_real_cells_have_them_too(tmp_path: Path) -> None:
    clean = made(tmp_path / "clean", GRID, technical=0)
    config = InjectConfig(plates=2, wells=2, series=2, position_effect=1)
    moved = inject(clean.path, tmp_path / "moved", config=config, quiet=True)
    place = joined(moved.table, moved.roles.environment)
    name = place.iloc[0]
    rows = np.flatnonzero((place == name).to_numpy(bool))
    np.testing.assert_array_equal(counterfactual(moved, rows, name), moved.read(rows))
    assert optics_from(moved.provenance["environments"][name]).gain_across
