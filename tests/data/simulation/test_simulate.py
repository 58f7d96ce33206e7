"""Simulated screens: determinism, exact counterfactuals, planted truth, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound.config import validated
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.cells import CHANNELS, render_cells
from deconfound.data.simulation.counterfactual import counterfactual, new_environment
from deconfound.data.simulation.frame import POSE
from deconfound.data.simulation.optics import apply_optics, digitised, optics_from
from deconfound.data.simulation.phenotype import TRAIT_NAMES
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.data.tables.table import Roles, joined
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

TINY = {"cells": 150, "labels": 3, "series": 2, "plates": 2, "sections": 2, "wells": 1}


def tiny(out: Path, **options: Any) -> Screen:
    return simulate(out, config=SimulateConfig.model_validate(TINY | options), quiet=True)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return tiny(tmp_path_factory.mktemp("simulated") / "screen")


def every_image(screen: Screen) -> Any:
    return screen.read(np.arange(len(screen)))


def test_a_screen_has_the_declared_form(screen: Screen) -> None:
    assert screen.channels == CHANNELS
    assert screen.image_shape == (4, 48, 48)
    assert screen.dtype == np.uint8
    assert len(screen) == 150
    metadata = [column for column in screen.table if column.startswith("Metadata_")]
    assert screen.table[metadata].map(type).eq(str).all(axis=None)
    assert screen.roles.levels == ("Metadata_Series", "Metadata_Plate", "Metadata_Section")
    assert not screen.table[metadata].duplicated().any()


def test_the_same_seed_gives_the_same_files(screen: Screen, tmp_path: Path) -> None:
    again = tiny(tmp_path / "screen")
    assert again.index.model_dump() == screen.index.model_dump()


def test_another_seed_gives_other_cells(screen: Screen, tmp_path: Path) -> None:
    other = tiny(tmp_path / "screen", seed=1)
    assert not np.allclose(other.table["Truth_CellSpread"], screen.table["Truth_CellSpread"])


@pytest.mark.parametrize("threads", [1, 3])
def test_images_do_not_depend_on_threads(screen: Screen, tmp_path: Path, threads: int) -> None:
    config = SimulateConfig.model_validate(TINY)
    again = simulate(tmp_path / "screen", config=config, threads=threads, quiet=True)
    np.testing.assert_array_equal(every_image(again), every_image(screen))


@pytest.mark.parametrize(
    "options",
    [{}, {"layout": "lincs", "maps": 2}, {"size": 31, "dtype": "uint16"}],
    ids=["grid", "lincs", "odd size"],
)
def test_own_environment_returns_the_stored_pixels(tmp_path: Path, options: Any) -> None:
    tiny(tmp_path / "screen", **options)
    screen = open_screen(tmp_path / "screen")
    environments = joined(screen.table, screen.roles.environment)
    for environment in environments.unique().tolist():
        rows = np.flatnonzero((environments == environment).to_numpy(dtype=bool))[::-3]
        images = counterfactual(screen, rows, environment)
        assert images.dtype == screen.dtype
        np.testing.assert_array_equal(images, screen.read(rows))


def test_another_environment_renders_the_same_cell_there(screen: Screen) -> None:
    row = 17
    cell = screen.table.iloc[[row]]
    values = {name: cell[f"Truth_{name}"].to_numpy() for name in (*TRAIT_NAMES, *POSE)}
    clean = render_cells(values, 0, cell["Truth_Cell"].tolist(), 48)
    noise = numpy_stream(0, "noise", row).standard_normal(clean.shape, dtype=np.float32)
    optics = optics_from(screen.provenance["environments"]["S2/P1/A2"])
    field = cell[["Truth_FieldX", "Truth_FieldY"]].to_numpy()
    expected = digitised(apply_optics(clean, optics, field, noise), "uint8")
    assert cell["Metadata_Series"].item() == "S1"
    np.testing.assert_array_equal(counterfactual(screen, [row], ("S2", "P1", "A2")), expected)


def test_no_environment_equals_a_screen_without_technical_variation(
    screen: Screen, tmp_path: Path
) -> None:
    clean = tiny(tmp_path / "clean", technical=0.0)
    rows = np.arange(len(screen))
    np.testing.assert_array_equal(counterfactual(screen, rows, "none"), every_image(clean))
    assert not np.array_equal(every_image(clean), every_image(screen))


def test_a_counterfactual_does_not_depend_on_its_companions(screen: Screen) -> None:
    together = counterfactual(screen, np.arange(len(screen)), "S1/P2/A1")
    for rows in ([3], [140, 3, 77]):
        np.testing.assert_array_equal(counterfactual(screen, rows, "S1/P2/A1"), together[rows])
    assert counterfactual(screen, [], "none").shape == (0, 4, 48, 48)


def test_new_environments_are_reproducible_and_not_the_screens(screen: Screen) -> None:
    optics = new_environment(screen, "a")
    assert optics == new_environment(screen, "a")
    assert optics != new_environment(screen, "b")
    assert optics.as_dict() not in screen.provenance["environments"].values()
    assert counterfactual(screen, [0], optics).shape == (1, 4, 48, 48)


def correlation(first: Any, second: Any) -> float:
    return float(np.corrcoef(np.asarray(first, float), np.asarray(second, float))[0, 1])


@pytest.fixture(scope="module")
def clean(screen: Screen) -> Any:
    return counterfactual(screen, np.arange(len(screen)), "none") / 255


def test_nuclear_area_follows_the_planted_radius(screen: Screen, clean: Any) -> None:
    area = (clean[:, 0] > 0.1).mean(axis=(1, 2))
    assert correlation(area, screen.table["Truth_NuclearRadius"] ** 2) > 0.9


def test_nuclear_elongation_follows_the_planted_eccentricity(screen: Screen, clean: Any) -> None:
    inside = clean[:, 0] > 0.1
    y, x = np.mgrid[:48, :48]
    axes = [np.linalg.eigvalsh(np.cov(x[one], y[one])) for one in inside]
    eccentricity = [np.sqrt(1 - minor / major) for minor, major in axes]
    assert correlation(eccentricity, screen.table["Truth_NuclearEccentricity"]) > 0.5


def test_cell_area_follows_the_planted_spread(screen: Screen, clean: Any) -> None:
    area = (clean[:, 1] > 0.05).mean(axis=(1, 2))
    assert correlation(area, screen.table["Truth_CellSpread"] ** 2) > 0.9


def test_mitochondrial_light_follows_their_number_and_size(screen: Screen, clean: Any) -> None:
    light = clean[:, 3].mean(axis=(1, 2))
    expected = screen.table["Truth_MitoNumber"] * screen.table["Truth_MitoSize"] ** 2
    assert correlation(light, expected) > 0.6


def test_treatments_shift_the_traits_that_the_provenance_records(tmp_path: Path) -> None:
    screen = tiny(tmp_path / "screen", cells=400, strength=3.0)
    means = screen.table.groupby("Metadata_Perturbation")[["Truth_CellSpread", "Truth_MitoSize"]]
    recorded = screen.provenance["phenotypes"]
    assert set(recorded["control"].values()) == {0.0}
    for label, mean in means.mean().iterrows():
        for trait in ("CellSpread", "MitoSize"):
            moved = mean[f"Truth_{trait}"] - means.mean().loc["control", f"Truth_{trait}"]
            shift = recorded[str(label)][trait]
            assert abs(moved) < 0.02 if shift == 0 else np.sign(moved) == np.sign(shift)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 1}, "'labels'"),
        ({"size": 23}, "'size'"),
        ({"series": 1}, "'series'"),
        ({"technical": -1}, "'technical'"),
        ({"cels": 10}, "did you mean 'cells'"),
    ],
)
def test_an_option_out_of_range_is_a_user_error(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(SimulateConfig, options, "simulate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 10}, "10 cells for .* wells; raise --cells"),
        ({"layout": "lincs", "maps": 3}, "3 plate maps for 2 treatments; lower --maps"),
        ({"layout": "lincs", "maps": 1, "series": 3}, "1 plate maps for 2 partial series"),
        ({"cells": 10_000, "wells": 400}, "wells on a plate"),
    ],
)
def test_an_impossible_layout_is_a_user_error(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path / "screen", **options)
    assert not (tmp_path / "screen").exists()


def test_an_existing_path_is_refused(screen: Screen) -> None:
    with pytest.raises(UserError, match="already exists"):
        tiny(screen.path)


def test_counterfactual_refuses_what_it_cannot_render(screen: Screen, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no environment 'S9/P1/A1'"):
        counterfactual(screen, [0], "S9/P1/A1")
    with pytest.raises(UserError, match="rows outside"):
        counterfactual(screen, [150], "none")
    with ScreenWriter(tmp_path / "plain", "plain", CHANNELS, Roles(), {}) as writer:
        writer.append(screen.read([0]))
        writer.finish(screen.table.iloc[[0]])
    with pytest.raises(UserError, match="not a simulated screen"):
        counterfactual(open_screen(tmp_path / "plain"), [0], "none")
