"""Runs that standardise draw no images in stored units and are trained on no imputed ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deconfound.counterfactuals.impute import impute
from deconfound.counterfactuals.judge import imputation
from deconfound.counterfactuals.swap import transfer
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

DATA = {"standardise_by": "plate", "id_test_fraction": 0}


@pytest.fixture(scope="module")
def standardised(
    restain: str,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("standardised") / "run"
    return fit(make_config(restain, data=DATA), screen.path, out, quiet=True).path


def test_either_run_with_it_is_refused(
    standardised: Path,
    source: Path,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    for data, imputer in ((DATA, source), ({}, standardised), (DATA, standardised)):
        config = make_config("erm", data=data)
        intervention = config.intervention.model_copy(update={"intervene": imputer})
        config = config.model_copy(update={"intervention": intervention})
        with pytest.raises(
            UserError, match="--standardise-by plate makes them alike; leave one of"
        ):
            fit(config, screen.path, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_images_are_neither_swapped_nor_imputed(
    standardised: Path,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    said = "was fitted with --standardise-by, and what it draws is of no environment"
    out = tmp_path / "out"
    with pytest.raises(UserError, match=said):
        impute(standardised, screen.path, out, to="P2", quiet=True)
    scbd = fit(make_config("scbd", data=DATA), screen.path, tmp_path / "scbd", quiet=True).path
    with pytest.raises(UserError, match=said):
        transfer(scbd, screen.path, out)
    grid = simulate(tmp_path / "grid", config=SimulateConfig(cells=720, size=24), quiet=True)
    data = {"standardise_by": "environment", "fold": "Metadata_Series=S2"}
    config = make_config("ist", data=data, options={"transfer_steps": 1})
    run = fit(config, grid.path, tmp_path / "ist", quiet=True).path
    with pytest.raises(UserError, match=said):
        imputation(run, grid.path, tmp_path / "i.parquet", oracle_steps=1, quiet=True)
    assert not out.exists()
