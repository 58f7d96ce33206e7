"""Embedding with ARM-BN and CS-ARM-BN: whose statistics, in which way, and the marks."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.embeddings import embed as embed_module
from deconfound.embeddings.embed import embed, embed_shards
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.measure import measure
from deconfound.methods.contract import Method
from deconfound.reports.report import report
from deconfound.runs import context as context_module
from deconfound.runs.config import RunConfig
from deconfound.runs.context import learn_contexts, sample_of
from deconfound.runs.run import Run, open_run
from deconfound.training.fit import fit

NAMES = ("armbn", "csarmbn")
DATA: dict[str, Any] = {"environment": ("series", "plate"), "id_test_fraction": 0}
NOTE = "batch statistics of unseen environments taken over images of test rows"
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def marked(screen: Screen, make_screen: Callable[..., Screen], tmp_path_factory: Any) -> Screen:
    """The tiny screen with c0 marked as the control, so that no label is needed to find it."""
    kind = np.where(screen.table["compound"] == "c0", "negcon", "treatment")
    table = screen.table.assign(Metadata_Control_Type=kind)
    images = screen.read(np.arange(len(screen)))
    return make_screen(tmp_path_factory.mktemp("marked") / "s", images, table, screen.roles)


@pytest.fixture(scope="module")
def runs(
    marked: Screen, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = DATA | {"controls": ()}
    return {
        name: fit(make_config(name, data=data), marked.path, folder / name, quiet=True).path
        for name in NAMES
    }


def environments(screen: Screen) -> pd.Series:
    return screen.table["series"] + "/" + screen.table["plate"]


def embedded(run: Path, screen: Screen, out: Path, **options: Any) -> np.ndarray[Any, Any]:
    given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True} | options
    return embed(run, screen.path, out, **given).representations["representation"]


def as_one_batch(run: Run, screen: Screen, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows (some of them more than once) as one batch whose own statistics normalise it."""
    method, intensity = run.load(screen)
    method.train()
    with torch.no_grad():
        image = intensity(torch.from_numpy(screen.read(rows)))
        return method.embed(image)["representation"].numpy()


def joined(run: Run, screen: Screen, own: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows and, for csarmbn, their controls as often as their share asks for."""
    asked = run.config.options.context
    assert asked is not None
    if not asked.controls:
        return own
    controls = own[screen.table["compound"].iloc[own] == "c0"]
    episode = run.config.training.batch_size // 3
    assert len(own) >= episode
    assert (len(own), len(controls), episode, asked.controls) == (24, 8, 8, 4)
    return np.concatenate([own] * 2 + [controls] * 3)  # 48 : 24 = 8 : 4


@every
def test_a_held_out_environment_is_normalised_by_all_of_its_images(
    name: str, runs: dict[str, Path], marked: Screen, tmp_path: Path
) -> None:
    found = embedded(runs[name], marked, tmp_path / "e.h5ad")
    own = np.flatnonzero(environments(marked) == "S1/P1")
    opened = open_run(runs[name])
    expected = as_one_batch(opened, marked, joined(opened, marked, own))[: len(own)]
    np.testing.assert_allclose(found[own], expected, rtol=1e-3, atol=1e-3)


@every
def test_an_environment_of_training_is_normalised_by_its_training_rows(
    name: str, runs: dict[str, Path], marked: Screen, tmp_path: Path
) -> None:
    """Rows of validation too, and from what the run holds alone."""
    found = embedded(runs[name], marked, tmp_path / "e.h5ad")
    opened = open_run(runs[name])
    part = pose(marked, opened.config.data).fold.part
    own = np.flatnonzero(environments(marked) == "S2/P1")
    rows = own[part[own] == "train"]
    assert 16 <= len(rows) < len(own)
    method, intensity = opened.load(marked)
    context = method.context
    assert context is not None
    reader = BatchReader(marked, intensity=intensity, device=torch.device("cpu"))
    controls = rows[marked.table["compound"].iloc[rows] == "c0"]
    controls = controls if name == "csarmbn" else controls[:0]
    sample = sample_of(opened.config, 3, rows, controls, "S2/P1")
    assert set(sample.rows) == set(rows)
    np.testing.assert_allclose(sample.weight.sum(), 1, rtol=1e-6)
    expected = context_module.measured(method, reader, sample)
    place = opened.environments.index("S2/P1")
    for norm, moments in zip(context.norms, expected, strict=True):
        torch.testing.assert_close(norm.means[place], moments.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.variances[place], moments.variance, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        all_of_it = method.embed_in(reader.read(own).image, torch.full((len(own),), place))
    np.testing.assert_allclose(found[own], all_of_it["representation"], atol=1e-4)


@every
def test_batches_files_processes_and_chunks_of_any_size_hold_the_same(
    name: str, runs: dict[str, Path], marked: Screen, tmp_path: Path, monkeypatch: Any
) -> None:
    run = runs[name]
    whole = embedded(run, marked, tmp_path / "e.h5ad")
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 25)
    for rank in (1, 0):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
        embed_shards(run, marked.path, tmp_path / "e", **given)
    monkeypatch.delenv("WORLD_SIZE")
    found = read_embeddings(tmp_path / "e").representations["representation"]
    np.testing.assert_allclose(found, whole, atol=1e-5)
    monkeypatch.setattr(embed_module, "CHUNK", 7)
    monkeypatch.setattr("deconfound.embeddings.stream.BATCH", 5)
    again = embedded(run, marked, tmp_path / "again.h5ad")
    np.testing.assert_allclose(again, whole, atol=1e-5)
    monkeypatch.setattr(context_module, "VALUES", 5 * 2 * 24 * 24)
    streamed = embedded(run, marked, tmp_path / "streamed.h5ad")
    np.testing.assert_allclose(streamed, whole, atol=1e-3)


@every
def test_environments_of_another_screen_are_measured_there_whatever_their_names(
    name: str,
    runs: dict[str, Path],
    marked: Screen,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    images = (marked.read(np.arange(len(marked))) * 2 + 500).astype(np.uint16)
    table = marked.table.drop(columns="compound")
    roles = marked.roles.model_copy(update={"label": None})
    other = make_screen(tmp_path / "s", images, table, roles)
    found = embedded(runs[name], other, tmp_path / "e.h5ad")
    opened = open_run(runs[name])
    own = np.flatnonzero(environments(marked) == "S2/P2")
    expected = as_one_batch(opened, other, joined(opened, marked, own))[: len(own)]
    np.testing.assert_allclose(found[own], expected, rtol=1e-3, atol=1e-3)


@every
def test_few_images_are_told_once_and_all_training_rows_stand_in(
    name: str,
    runs: dict[str, Path],
    marked: Screen,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    rows = np.flatnonzero(environments(marked) == "S1/P1")[:15]
    table = marked.table.iloc[rows].reset_index(drop=True)
    other = make_screen(tmp_path / "s", marked.read(rows), table, marked.roles)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = embedded(runs[name], other, tmp_path / "e.h5ad")
    said = [str(one.message) for one in caught if issubclass(one.category, InputWarning)]
    assert len(said) == 1
    assert "fewer than 16 images for batch statistics of S1/P1 (15): " in said[0]
    method, intensity = open_run(runs[name]).load(other)
    with torch.no_grad():
        expected = method.embed(intensity(torch.from_numpy(other.read(np.arange(15)))))
    np.testing.assert_allclose(found, expected["representation"], atol=1e-5)


def test_a_row_without_an_environment_takes_those_of_all_training_rows(
    runs: dict[str, Path], marked: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    table = marked.table.copy()
    table.loc[:2, "plate"] = None
    roles = marked.roles.model_copy(update={"levels": ()})
    images = marked.read(np.arange(len(marked)))
    other = make_screen(tmp_path / "s", images, table, roles)
    found = embedded(runs["armbn"], other, tmp_path / "e.h5ad")
    method, intensity = open_run(runs["armbn"]).load(other)
    with torch.no_grad():
        expected = method.embed(intensity(torch.from_numpy(images[:3])))["representation"]
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)


def learned(run: Run, screen: Screen) -> tuple[Method, np.ndarray[Any, Any]]:
    method, intensity = run.load(screen)
    reader = BatchReader(screen, intensity=intensity, device=torch.device("cpu"))
    codes = learn_contexts(run, screen, method, reader)
    assert codes is not None
    return method, codes


def test_controls_of_an_unseen_environment_are_needed_and_found(
    runs: dict[str, Path], marked: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    opened, images = open_run(runs["csarmbn"]), marked.read(np.arange(len(marked)))
    table = marked.table.assign(series="T")
    first = table["plate"] == "P1"
    table.loc[first, "Metadata_Control_Type"] = "treatment"
    some = make_screen(tmp_path / "some", images, table, marked.roles)
    with pytest.warns(InputWarning, match="no negative control to join .* of T/P1: they are those"):
        method, codes = learned(opened, some)
    assert sorted(set(codes)) == [3, 4]
    alone = as_one_batch(opened, some, np.flatnonzero(first))
    reader = BatchReader(some, intensity=opened.load(some)[1], device=torch.device("cpu"))
    with torch.no_grad():
        image = reader.read(np.flatnonzero(first)).image
        found = method.embed_in(image, torch.full((len(image),), 3))["representation"]
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-3)
    roles = marked.roles.model_copy(update={"label": None})
    table = table.drop(columns=["compound", "Metadata_Control_Type"])
    unknown = make_screen(tmp_path / "unknown", images, table, roles)
    with pytest.raises(
        UserError, match=r"no column Metadata_Control_Type .*or use the method armbn"
    ):
        learned(opened, unknown)
    no_column = make_screen(
        tmp_path / "without", images, marked.table.drop(columns="plate"),
        marked.roles.model_copy(update={"levels": (), "environment": ("series",)}),
    )  # fmt: skip
    with pytest.raises(UserError, match="no column 'plate'"):
        embedded(runs["armbn"], no_column, tmp_path / "e.h5ad")


def test_at_most_so_many_images_are_drawn_by_the_name_alone(
    make_config: Callable[..., RunConfig],
) -> None:
    options = {"context_images": 20, "controls_per_episode": 8, "measured": "joined"}
    config = make_config("csarmbn", options=options)
    rows, controls = np.arange(100), np.arange(0, 100, 2)
    sample = sample_of(config, 3, rows, controls, "a")
    assert len(sample.rows) == 40
    np.testing.assert_allclose(sorted(set(sample.weight)), [0.5 / 20], rtol=1e-6)
    again = sample_of(config, 3, rows, controls, "a")
    assert np.array_equal(sample.rows, again.rows)
    assert not np.array_equal(sample.rows, sample_of(config, 3, rows, controls, "b").rows)
    few = sample_of(config, 3, rows[:2], controls[:2], "a")  # 2 images beside 8 controls
    np.testing.assert_allclose(sorted(few.weight), [0.1, 0.1, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize(("count", "alone"), [(16, True), (15, False)])
def test_controls_alone_are_measured_where_there_are_enough(
    count: int, alone: bool, make_config: Callable[..., RunConfig]
) -> None:
    config = make_config("csarmbn", options={"controls_per_episode": 8})
    rows, controls = np.arange(100), np.arange(0, 2 * count, 2)
    sample = sample_of(config, 3, rows, controls, "a")
    np.testing.assert_allclose(sample.weight.sum(), 1, rtol=1e-6)
    if alone:
        assert np.array_equal(sample.rows, controls)
        np.testing.assert_allclose(sample.weight, 1 / count, rtol=1e-6)
    else:
        assert len(sample.rows) == 100 + count
        of_controls = sample.weight[np.isin(sample.rows, controls)].sum()
        np.testing.assert_allclose(of_controls, 0.5 + 0.5 * count / 100, rtol=1e-5)


@every
def test_files_scores_and_reports_say_what_was_used(
    name: str, runs: dict[str, Path], marked: Screen, tmp_path: Path
) -> None:
    file = tmp_path / "e.h5ad"
    given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
    about = embed(runs[name], marked.path, file, **given).about
    assert (about["method"], about["saw_held_out"]) == (f"{name}-da", True)
    assert list(about["held_out_notes"]) == [NOTE]
    scores = measure([file], tmp_path / "scores.parquet", quiet=True)
    assert set(scores["method"]) == {f"{name}-da"}
    assert scores["note"].str.contains(NOTE).all()
    assert not scores["note"].str.contains("trained with images").any()
    for number, sources in enumerate(([tmp_path / "scores.parquet"], [runs[name], file])):
        page = tmp_path / f"report-{number}.html"
        report(sources, page)
        text = page.read_text(encoding="utf-8")
        use = "took batch statistics of environments never seen over test images"
        assert f"{name}-da {use}, without their labels" in text
