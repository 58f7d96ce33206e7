"""Embedding with a run that standardises: own statistics of unseen groups, and the marks."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from deconfound.data.screens.screen import Screen
from deconfound.embeddings import embed as embed_module
from deconfound.embeddings.correct import correct
from deconfound.embeddings.embed import embed, embed_shards, profiles
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.measure import measure
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig
from deconfound.runs.run import learn_groups, open_run
from deconfound.training.fit import fit

DATA = {"standardise_by": "plate", "id_test_fraction": 0}
NOTE = "unseen groups standardised with images of test rows"


@pytest.fixture(scope="module")
def run(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("standardised") / "run"
    return fit(make_config("erm", data=DATA), screen.path, out, quiet=True).path


def plates(screen: Screen) -> pd.Series:
    return screen.table["series"] + "/" + screen.table["plate"]


def embedded(run: Path, screen: Screen, out: Path, **options: Any) -> np.ndarray[Any, Any]:
    given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True} | options
    return embed(run, screen.path, out, **given).representations["representation"]


def test_a_held_out_plate_takes_its_own_images_and_others_keep_those_of_training(
    run: Path, screen: Screen, tmp_path: Path
) -> None:
    opened = open_run(run)
    method, intensity = opened.load(screen)
    of_training = intensity.statistics.clone()
    codes = learn_groups(opened, screen, intensity)
    assert codes is not None
    names = (*opened.groups, "S1/P1")
    assert [names[code] for code in codes] == plates(screen).tolist()
    assert torch.equal(intensity.statistics[[0, 1, 2, 4]], of_training)
    held_out = screen.read(np.flatnonzero(plates(screen) == "S1/P1")).astype(np.float64)
    expected = [held_out.mean(axis=(0, 2, 3)), held_out.std(axis=(0, 2, 3))]
    np.testing.assert_allclose(intensity.statistics[3], expected, rtol=1e-5)
    with torch.no_grad():
        pixels = torch.from_numpy(screen.read(np.arange(len(screen))))
        found = method.embed(intensity(pixels, torch.from_numpy(codes)))["representation"]
    np.testing.assert_allclose(embedded(run, screen, tmp_path / "e.h5ad"), found, atol=1e-5)


def test_a_new_screen_takes_the_statistics_of_its_own_plates(
    run: Path, screen: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    """Whatever they are called, and without a column of labels or of controls."""
    images = (screen.read(np.arange(len(screen))) * 2 + 500).astype(np.uint16)
    table = screen.table.drop(columns="compound").assign(series="T")
    roles = screen.roles.model_copy(update={"label": None})
    other = make_screen(tmp_path / "s", images, table, roles)
    opened = open_run(run)
    intensity = opened.load(other)[1]
    codes = learn_groups(opened, other, intensity)
    assert codes is not None
    assert sorted(set(codes)) == [3, 4]
    scaled = intensity(torch.from_numpy(images), torch.from_numpy(codes))
    target = intensity.statistics[-1]
    expected = (target[0] - intensity.offset) * intensity.scale
    torch.testing.assert_close(scaled[codes == 3].mean(dim=(0, 2, 3)), expected, atol=1e-4, rtol=0)
    named = make_screen(tmp_path / "n", images, screen.table, screen.roles)
    intensity = opened.load(named)[1]
    codes = learn_groups(opened, named, intensity)
    assert codes is not None
    assert sorted(set(codes)) == [3, 4, 5, 6]


def test_files_and_processes_of_any_number_hold_the_same(
    run: Path, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedded(run, screen, tmp_path / "e.h5ad")
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 25)
    for rank in (1, 0):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
        embed_shards(run, screen.path, tmp_path / "e", **given)
    monkeypatch.delenv("WORLD_SIZE")
    found = read_embeddings(tmp_path / "e").representations["representation"]
    np.testing.assert_allclose(found, whole, atol=1e-6)
    monkeypatch.setattr(embed_module, "CHUNK", 7)
    monkeypatch.setattr("deconfound.embeddings.stream.BATCH", 5)
    again = embedded(run, screen, tmp_path / "again.h5ad")
    np.testing.assert_allclose(again, whole, atol=1e-6)


def test_few_images_are_told_once_and_those_of_training_stand_in(
    run: Path, screen: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    rows = np.flatnonzero(plates(screen) == "S1/P1")[:15]
    table = screen.table.iloc[rows].reset_index(drop=True)
    other = make_screen(tmp_path / "s", screen.read(rows), table, screen.roles)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedded(run, other, tmp_path / "e.h5ad")
    said = [str(one.message) for one in caught if issubclass(one.category, InputWarning)]
    assert len(said) == 1
    assert "fewer than 16 rows to standardise by of S1/P1 (15): " in said[0]
    opened = open_run(run)
    intensity = opened.load(other)[1]
    with pytest.warns(InputWarning):
        learn_groups(opened, other, intensity)
    assert torch.equal(intensity.statistics[3], intensity.statistics[-1])


def test_controls_of_an_unseen_plate_are_needed_and_found(
    screen: Screen,
    make_config: Callable[..., RunConfig],
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    marked = screen.table.assign(
        Metadata_Control_Type=np.where(screen.table["compound"] != "c2", "negcon", "treatment")
    )
    images = screen.read(np.arange(len(screen)))
    own = make_screen(tmp_path / "s", images, marked, screen.roles)
    data = DATA | {"standardise_with": "controls", "fold": "series=S1", "standardise_by": "series"}
    path = fit(make_config("erm", data=data), own.path, tmp_path / "run", quiet=True).path
    opened = open_run(path)
    intensity = opened.load(own)[1]
    learn_groups(opened, own, intensity)
    control = ((marked["series"] == "S1") & (marked["compound"] != "c2")).to_numpy()
    expected = images[control].astype(np.float64).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(intensity.statistics[1, 0], expected, rtol=1e-5)
    bare = marked.drop(columns=["Metadata_Control_Type", "compound"])
    roles = screen.roles.model_copy(update={"label": None})
    without = make_screen(tmp_path / "b", images, bare, roles)
    with pytest.raises(UserError, match="no column Metadata_Control_Type and none of labels"):
        embedded(path, without, tmp_path / "e.h5ad")


def test_profiles_are_standardised_as_images_are(
    make_config: Callable[..., RunConfig], make_screen: Callable[..., Screen], screen: Screen,
    tmp_path: Path,
) -> None:  # fmt: skip
    stream = np.random.default_rng(0)
    gain = plates(screen).map({"S1/P1": 9, "S1/P2": 1, "S2/P1": 3, "S2/P2": 0.3}).to_numpy()
    values = (stream.normal(5, 1, (len(screen), 2)) * gain[:, None]).astype(np.float32)
    other = make_screen(tmp_path / "s", values, screen.table, screen.roles)
    for kind in ("moments", "quantiles", "robust"):
        config = make_config("erm", data=DATA | {"standardise": kind})
        run = open_run(fit(config, other.path, tmp_path / kind, quiet=True).path)
        intensity = run.load(other)[1]
        codes = learn_groups(run, other, intensity)
        assert codes is not None
        with torch.no_grad():
            found = intensity(torch.from_numpy(values), torch.from_numpy(codes)).numpy()
        middle = [np.median(found[codes == code], axis=0) for code in range(4)]
        np.testing.assert_allclose(middle, np.broadcast_to(middle[0], (4, 2)), atol=0.4)
        assert embedded(run.path, other, tmp_path / f"{kind}.h5ad").shape == (96, 256)
    data = config.data.model_copy(update={"standardise": "moments"})
    with pytest.raises(UserError, match="--standardise-by plate: profiles are taken as they are"):
        profiles(other.path, tmp_path / "p.h5ad", data)


def test_files_scores_and_report_say_so(run: Path, screen: Screen, tmp_path: Path) -> None:
    file = tmp_path / "e.h5ad"
    about = embed(run, screen.path, file, device="cpu", threads=1, quiet=True).about
    assert (about["method"], about["saw_held_out"]) == ("erm-da", True)
    scores = measure([file], tmp_path / "scores.parquet", quiet=True)
    assert set(scores["method"]) == {"erm-da"}
    assert scores["note"].str.contains(NOTE).all()
    assert not scores["note"].str.contains("trained with images").any()
    made = correct("knn", file, tmp_path / "k.h5ad")
    assert made.about["saw_held_out"] is True
    corrected = measure([tmp_path / "k.h5ad"], quiet=True)
    assert corrected["note"].str.contains(NOTE).all()
    for number, sources in enumerate(([tmp_path / "scores.parquet"], [run, file])):
        page = tmp_path / f"report-{number}.html"
        report(sources, page)
        text = page.read_text(encoding="utf-8")
        assert "erm-da standardised groups never seen by images of test rows" in text
        assert "was trained with images of test rows" not in text
    assert "standardised by series / plate (moments)" in text


def test_a_screen_without_the_column_is_refused(
    run: Path, screen: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    table = screen.table.drop(columns="plate")
    roles = screen.roles.model_copy(update={"levels": (), "environment": ("series",)})
    other = make_screen(tmp_path / "s", screen.read(np.arange(len(screen))), table, roles)
    with pytest.raises(UserError, match="no column 'plate'"):
        embedded(run, other, tmp_path / "e.h5ad")
