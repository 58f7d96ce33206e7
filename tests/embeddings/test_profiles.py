"""A screen of profiles, from fit to report, with the methods that images have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.problem import pose
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.description.describe import describe
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

FEATURES = tuple(f"Cells_Shape_{number}" for number in range(12))
MakeConfig = Callable[..., RunConfig]


def write_profiles(path: Path, table: pd.DataFrame, values: np.ndarray, roles: Roles) -> Screen:
    with ScreenWriter(path, "wells", FEATURES, roles, {}) as writer:
        writer.append(values)
        writer.finish(table)
    return open_screen(path)


def profiles_of(table: pd.DataFrame) -> np.ndarray:
    """(N, 12) float32: four features follow the compound, four the plate, one is constant."""
    values = np.random.default_rng(0).normal(size=(len(table), 12))
    values[:, :4] += 3 * table["compound"].str[1:].astype(int).to_numpy()[:, None]
    values[:, 4:8] += 3 * (table["plate"] == "P1").to_numpy()[:, None]
    values *= 10.0 ** np.arange(-4, 8)
    values[:, 11] = 0.3
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def wells(
    make_table: Callable[..., pd.DataFrame],
    screen: Screen,
    tmp_path_factory: pytest.TempPathFactory,
) -> Screen:
    table = make_table(10)
    path = tmp_path_factory.mktemp("profiles") / "wells"
    return write_profiles(path, table, profiles_of(table), screen.roles)


@pytest.fixture(scope="module")
def runs(wells: Screen, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("erm", "scbd"):
        config = make_config(method, training={"steps": 30, "validate_every": 15})
        fit(config, wells.path, folder / method, quiet=True)
    return folder


def test_fit_embed_measure_report(wells: Screen, runs: Path, tmp_path: Path) -> None:
    files = []
    for method in ("erm", "scbd"):
        file = tmp_path / f"{method}.h5ad"
        found = embed(runs / method, wells.path, file, device="cpu", threads=1, quiet=True)
        assert found.representations["representation"].shape == (len(wells), 256)
        files.append(file)
    assert sorted(found.representations) == ["content", "representation", "style"]
    scores = measure(files, tmp_path / "scores.parquet", quiet=True)
    held_out = scores[(scores["part"] == "test") & (scores["metric"] == "accuracy")]
    assert set(held_out["method"]) == {"erm", "scbd"}
    assert held_out["value"].min() > 0.9
    report([runs, tmp_path / "scores.parquet", *files], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the screen holds profiles, which have no pictures" in page


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        ("vae", {"representation": 16}),
        ("ivae", {"representation": 16, "content": 16, "style": 16}),
        ("mcvae", {"representation": 32, "content": 16, "style": 16}),
    ],
)
def test_autoencoders_of_profiles(
    method: str, blocks: dict[str, int], wells: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    """By perceptrons both ways."""
    config = make_config(method, training={"steps": 60, "validate_every": 60})
    run = fit(config, wells.path, tmp_path / "run", quiet=True)
    file = tmp_path / "e.h5ad"
    found = embed(run.path, wells.path, file, device="cpu", threads=1, quiet=True)
    shapes = {name: values.shape[1] for name, values in found.representations.items()}
    assert shapes == blocks
    assert all(np.isfinite(values).all() for values in found.representations.values())
    said = found.table["deconfound_predicted"] == found.table["compound"]
    assert said[found.table["deconfound_part"] == "test"].mean() > 0.5
    trained, _ = run.load(wells)
    drawn = trained.swap(torch.zeros(2, 16), torch.zeros(2, 16))
    assert (drawn is None) == (method == "vae")
    assert drawn is None or drawn.shape == (2, len(FEATURES))


def test_scaling_of_features_is_that_of_training_rows(wells: Screen, runs: Path) -> None:
    run = open_run(runs / "erm")
    _, intensity = run.load(wells)
    part = pose(wells, run.config.data).fold.part
    values = intensity(torch.from_numpy(wells.read(range(len(wells))))).numpy()
    train = values[part == "train"]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(train.std(axis=0)[:11], 1, atol=1e-3)
    assert (values[:, 11] == 0).all()
    assert abs(values[part == "test"][:, :11].mean()) > 1e-3


def test_a_feature_constant_in_training_says_nothing_of_other_rows(
    wells: Screen, tmp_path: Path
) -> None:
    values = wells.read(range(len(wells)))
    values[100:, 11] = 7
    changed = write_profiles(tmp_path / "s", wells.table, values, wells.roles)
    intensity = fit_intensity(changed, np.arange(100), "none", "standardise", 0)
    scaled = intensity(torch.from_numpy(values))
    assert torch.isfinite(scaled).all()
    assert (scaled[:, 11] == 0).all()
    assert (scaled[100:, :11] != 0).all()


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("scbd", {"options": {"decoder": "after"}}, "leave --decoder out"),
        ("scbd", {"options": {"decoder": "beside"}}, "leave --decoder out"),
        ("mixstyle", {}, "profiles, which have none; use another method"),
        ("erm", {"training": {"augment": "dihedral"}}, "leave --augment out"),
        ("erm", {"options": {"encoder": "resnet18"}}, "encoder resnet18 takes images.*use mlp"),
        ("erm", {"options": {"norm": "instance"}}, "profiles have none"),
    ],
)
def test_what_only_images_have_is_refused_in_one_line(
    wells: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    method: str,
    changes: dict[str, object],
    said: str,
) -> None:
    with pytest.raises(UserError, match=said) as error:
        fit(make_config(method, **changes), wells.path, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_transfer_of_profiles_is_refused(wells: Screen, runs: Path, tmp_path: Path) -> None:
    assert not list((runs / "scbd").glob("decoder-*"))
    with pytest.raises(UserError, match="transfer draws cells, give a screen of images"):
        transfer(runs / "scbd", wells.path, tmp_path / "swap")


def test_a_run_on_profiles_takes_no_other_features(screen: Screen, runs: Path) -> None:
    with pytest.raises(UserError, match=r"was trained on Cells_Shape_0, .*") as error:
        open_run(runs / "erm").load(screen)
    assert "\n" not in str(error.value)


def test_profiles_are_described_by_their_means_and_nothing_is_black(wells: Screen) -> None:
    found = describe(wells.path, quiet=True)
    assert set(found.statistics["channel"]) == set(wells.channels)
    assert not found.statistics[["black", "constant"]].to_numpy().any()
    assert found.statistics["saturated"].isna().all()
    assert not any("black" in warning for warning in found.warnings)
