"""Embeddings of `Deconfounder` have the bits of `deconfound fit` and `deconfound embed`."""

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound import Deconfounder, check, cli
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.errors import InputWarning

FEW = {"steps": 2, "batch_size": 24, "device": "cpu", "threads": 1, "precision": "32"}
SCBD = {"block_size": 16, "decoder": "none"}
ON_CPU = "--device cpu --threads 1 --quiet"


def deconfound(words: str) -> None:
    cli.main(shlex.split(words))


def flags(options: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {one}" for name, one in options.items())


def same(found: Any, file: Path) -> None:
    """Assert that AnnData has the blocks, bit for bit, and the obs of a file."""
    expected = anndata.read_h5ad(file)
    assert list(found.obsm) == list(expected.obsm)
    for name in expected.obsm:
        np.testing.assert_array_equal(found.obsm[name], expected.obsm[name], err_msg=name)
    # pandas 3 reads text as a type of its own, in an index and in categories
    pd.testing.assert_frame_equal(
        found.obs, expected.obs, check_index_type=False, check_categorical=False
    )
    for name in expected.obs.select_dtypes("category"):
        assert list(found.obs[name].cat.categories) == list(expected.obs[name].cat.categories)


def pixels(screen: Screen) -> npt.NDArray[Any]:
    return screen.read(np.arange(len(screen)))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    config = SimulateConfig(cells=144, series=2, plates=2, sections=1, labels=3, size=24)
    path = tmp_path_factory.mktemp("simulated") / "screen"
    return simulate(path, config=config, quiet=True)


@pytest.mark.parametrize("as_arrays", [False, True], ids=["screen", "arrays"])
@pytest.mark.parametrize(
    ("method", "options"),
    [(None, {}), ("scbd", SCBD), ("erm", {"standardise_by": "Metadata_Plate"})],
    ids=["recommended", "scbd", "erm"],
)
def test_of_a_simulated_screen(
    as_arrays: bool,
    method: str | None,
    options: dict[str, Any],
    simulated: Screen,
    tmp_path: Path,
) -> None:
    """Given as a screen, and as arrays with its table; saved, it is the run that `fit` makes."""
    screen, fold = simulated.path, "Metadata_Series=S2"
    words = f"fit {method or ''} {screen} --out {tmp_path}/run {flags(FEW | options)} --quiet"
    deconfound(f"{words} --hold-out {fold}")
    deconfound(f"embed {tmp_path}/run {screen} --out {tmp_path}/run.h5ad {ON_CPU}")
    model = Deconfounder(method, quiet=True, hold_out=fold, **FEW, **options)
    if as_arrays:
        roles = simulated.roles
        given = {"table": simulated.table, "channels": simulated.channels, "levels": roles.levels}
        told = roles.label, list(roles.environment)
        found = model.fit_transform(pixels(simulated), *told, **given)
        again = model.transform(pixels(simulated), table=simulated.table)
    else:
        found = model.fit_transform(simulated)
        again = model.transform(screen)
    same(found, tmp_path / "run.h5ad")
    same(again, tmp_path / "run.h5ad")
    assert set(found.obs[PART]) == {"train", "val", "id_test", "test"}
    model.save(tmp_path / "saved")
    assert "whole" in check(tmp_path / "saved")
    for file in ("model.safetensors", "classes.json"):
        expected = (tmp_path / "run" / file).read_bytes()
        assert (tmp_path / "saved" / file).read_bytes() == expected
    deconfound(f"embed {tmp_path}/saved {screen} --out {tmp_path}/saved.h5ad {ON_CPU}")
    same(found, tmp_path / "saved.h5ad")
    loaded = Deconfounder.load(tmp_path / "saved")
    assert loaded.get_params() == model.get_params()
    same(loaded.transform(simulated), tmp_path / "run.h5ad")


def test_of_labels_and_environments_as_arrays(screen: Screen, tmp_path: Path) -> None:
    """As of a table of the same two columns that was ingested with the array."""
    plates = screen.table["plate"].to_numpy()
    columns = pd.DataFrame({"compound": screen.table["compound"], "environment": plates})
    columns.to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "images.npy", pixels(screen))
    roles = "--label compound --environment environment --array-axes NCHW --quiet"
    files = f"{tmp_path}/t.csv --array {tmp_path}/images.npy"
    deconfound(f"ingest {files} --out {tmp_path}/s {roles}")
    deconfound(f"fit erm {tmp_path}/s --out {tmp_path}/run {flags(FEW)} --quiet")
    deconfound(f"embed {tmp_path}/run {tmp_path}/s --out {tmp_path}/e.h5ad {ON_CPU}")
    model = Deconfounder("erm", quiet=True, **FEW)
    found = model.fit_transform(pixels(screen), screen.table["compound"], plates)
    same(found, tmp_path / "e.h5ad")


def test_an_environment_never_seen_is_measured_on_its_own_images(
    screen: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    """As `embed` does of a screen with it; of fewer than 16 images those of training stand in."""
    model = Deconfounder("erm", quiet=True, standardise_by="environment", **FEW)
    model.fit(screen)
    model.save(tmp_path / "run")
    images = (pixels(screen)[:40] * 1.5).astype(np.uint16)
    table = screen.table[:40].assign(plate="P9")
    other = make_screen(tmp_path / "other", images, table)
    deconfound(f"embed {tmp_path}/run {other.path} --out {tmp_path}/e.h5ad {ON_CPU}")
    found = model.transform(images, environment=["P9"] * 40)
    expected = anndata.read_h5ad(tmp_path / "e.h5ad")
    np.testing.assert_array_equal(found.obsm["X_representation"], expected.obsm["X_representation"])
    assert list(found.obs["plate"].unique()) == ["P9"]
    assert list(found.obs[PREDICTED]) == list(expected.obs[PREDICTED])
    with pytest.warns(InputWarning, match=r"fewer than 16 rows.*P9 \(15\).*all training rows"):
        few = model.transform(images[:15], environment=["P9"] * 15)
    assert not np.array_equal(few.obsm["X_representation"], found.obsm["X_representation"][:15])


PROFILES = {"steps": 4, "batch_size": 16, "device": "cpu", "threads": 1, "precision": "32"}


@pytest.fixture
def profiles() -> pd.DataFrame:
    stream = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "Metadata_Perturbation": ["a", "b", "c"] * 32,
            "Metadata_Plate": np.repeat(["P1", "P2"], 48),
            "Metadata_Dose": np.tile([1.0, 2.0], 48),
        }
    )
    code = table["Metadata_Perturbation"].map("abc".index)
    for number in range(5):
        table[f"Cells_{number}"] = stream.normal(size=96) + number * code
    table["Cells_Constant"] = 3.0
    return table


@pytest.mark.parametrize("kind", ["frame", "X", "layer", "obsm", "array"])
def test_of_profiles(kind: str, profiles: pd.DataFrame, tmp_path: Path) -> None:
    """Of a DataFrame, of AnnData and an array as of the same table that was ingested."""
    profiles.to_parquet(tmp_path / "t.parquet")
    deconfound(f"ingest {tmp_path}/t.parquet --profiles --out {tmp_path}/s --quiet")
    deconfound(f"fit erm {tmp_path}/s --out {tmp_path}/run {flags(PROFILES)} --quiet")
    deconfound(f"embed {tmp_path}/run {tmp_path}/s --out {tmp_path}/e.h5ad {ON_CPU}")
    features = [name for name in profiles if name.startswith("Cells_")]
    metadata = profiles.drop(columns=features)
    values = profiles[features].to_numpy()
    data: Any = profiles
    given: dict[str, Any] = {}
    if kind == "array":
        data, given = values, {"table": metadata}
    elif kind != "frame":
        obs = metadata.set_axis(metadata.index.astype(str))
        data = anndata.AnnData(np.zeros_like(values), obs=obs)
        data.var_names = features
        if kind == "X":
            data.X = values
        elif kind == "layer":
            data.layers["raw"], given = values, {"layer": "raw"}
        else:
            data.obsm["emb"], given = values, {"obsm": "emb"}
    model = Deconfounder("erm", quiet=True, **PROFILES)
    found = model.fit_transform(data, **given)
    expected = anndata.read_h5ad(tmp_path / "e.h5ad")
    np.testing.assert_array_equal(found.obsm["X_representation"], expected.obsm["X_representation"])
    assert list(found.obs[PART]) == list(expected.obs[PART])
    model.save(tmp_path / "saved")
    told = {} if kind in ("layer", "obsm") else given  # the part of AnnData is remembered
    again = Deconfounder.load(tmp_path / "saved").set_params(quiet=True).transform(data, **told)
    np.testing.assert_array_equal(again.obsm["X_representation"], found.obsm["X_representation"])


def test_features_that_are_missing_somewhere_are_dropped_and_named(profiles: pd.DataFrame) -> None:
    lacking = profiles.assign(Cells_0=profiles["Cells_0"].mask(profiles.index == 5))
    model = Deconfounder("erm", quiet=True, **PROFILES)
    with pytest.warns(InputWarning, match="1 of 6 features are missing.*Cells_0"):
        found = model.fit_transform(lacking)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = model.fit_transform(profiles.drop(columns="Cells_0"))
    np.testing.assert_array_equal(found.obsm["X_representation"], without.obsm["X_representation"])
