"""Runs whose batch norms adapt to the environment: what they may depend on, how they go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.runs.config import RunConfig
from deconfound.runtime.stop import Stopped
from deconfound.training.fit import fit, train

MakeConfig = Callable[..., RunConfig]
DATA: dict[str, Any] = {
    "environment": ("series", "plate"), "id_test_fraction": 0, "controls": (),
}  # fmt: skip
every = pytest.mark.parametrize("name", ["armbn", "csarmbn"])


def changed(screen: Screen, make_screen: Callable[..., Screen], path: Path, what: str) -> Screen:
    """The tiny screen, its controls marked, with noise for "labels" or "pixels" of S1/P1."""
    kind = np.where(screen.table["compound"] == "c0", "negcon", "treatment")
    table = screen.table.assign(Metadata_Control_Type=kind)
    images = screen.read(np.arange(len(screen)))
    hidden = ((table["series"] == "S1") & (table["plate"] == "P1")).to_numpy()
    stream = np.random.default_rng(3)
    if "pixels" in what:
        images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    if "labels" in what:
        table.loc[hidden, "compound"] = stream.permutation(table.loc[hidden, "compound"])
    return make_screen(path, images, table, screen.roles)


@every
@pytest.mark.parametrize("what", ["labels and pixels", "labels"])
def test_held_out_pixels_decide_what_is_embedded_of_their_environment_and_nothing_else(
    name: str,
    what: str,
    screen: Screen,
    make_screen: Callable[..., Screen],
    make_config: MakeConfig,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    config = make_config(name, data=DATA)
    runs, found = [], []
    for place, noisy in enumerate(("nothing", what)):
        other = changed(screen, make_screen, tmp_path / f"s{place}", noisy)
        runs.append(fit(config, other.path, tmp_path / f"r{place}", quiet=True).path)
        file = tmp_path / f"{place}.h5ad"
        made = embed(runs[-1], other.path, file, device="cpu", threads=1, quiet=True)
        found.append(made.representations["representation"])
    assert_same_run(*runs)
    hidden = made.part == "test"
    assert hidden.any()
    assert np.array_equal(found[0][~hidden], found[1][~hidden])
    assert np.array_equal(found[0][hidden], found[1][hidden]) == ("pixels" not in what)


def test_an_image_held_out_bears_on_the_others_of_its_environment_alone(
    screen: Screen, make_screen: Callable[..., Screen], make_config: MakeConfig, tmp_path: Path
) -> None:
    """And a validation image on none: its environment is measured on training rows."""
    images = screen.read(np.arange(len(screen)))
    run = fit(make_config("armbn", data=DATA), screen.path, tmp_path / "run", quiet=True).path
    part = pose(screen, make_config("armbn", data=DATA).data).fold.part
    given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
    before = embed(run, screen.path, tmp_path / "e.h5ad", **given).representations["representation"]
    from deconfound.runs.run import Run

    for kind, wider in (("test", True), ("val", False)):
        row = np.flatnonzero(part == kind)[0]
        other = images.copy()
        other[row] = other[row, :, ::-1] * 3 + 900
        made = make_screen(tmp_path / f"s{kind}", other, screen.table, screen.roles)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "trained_on", lambda *_: True)
            file = tmp_path / f"{kind}.h5ad"
            after = embed(run, made.path, file, **given).representations["representation"]
        moved = (before != after).any(axis=1)
        expected = np.arange(len(screen)) == row
        if wider:
            expected = part == "test"
        assert np.array_equal(moved, expected)


@every
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    name: str,
    screen: Screen,
    make_screen: Callable[..., Screen],
    make_config: MakeConfig,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deconfound.training.loop import Training

    config = make_config(name, data=DATA)
    marked = changed(screen, make_screen, tmp_path / "s", "nothing")
    whole = fit(config, marked.path, tmp_path / "whole", quiet=True).path
    validate = Training._validate

    def ask(self: Training) -> None:
        validate(self)
        self.request.asked = self.position.done == 4

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_validate", ask)
        with pytest.raises(Stopped):
            fit(config, marked.path, tmp_path / "halves", quiet=True)
    halves = fit(config, marked.path, tmp_path / "halves", quiet=True).path
    assert_same_run(whole, halves)


@pytest.mark.parametrize("alone", [False, True])
def test_validation_predicts_what_embed_predicts_unless_embed_knows_more(
    alone: bool,
    screen: Screen,
    make_screen: Callable[..., Screen],
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    """An environment without training rows is measured by `embed`, and not in validation."""
    part = np.resize([*("train",) * 6, "val", "val", "id_test", "test"], len(screen))
    table = screen.table.assign(split=part, batch=screen.table["plate"])
    table.loc[part == "val", "batch"] = "Q" if alone else "P1"
    roles = screen.roles.model_copy(update={"split": "split"})
    other = make_screen(tmp_path / "s", screen.read(np.arange(len(screen))), table, roles)
    config = make_config("armbn", data={"fold": "given", "environment": ("batch",)})
    done = train(config, other, pose(other, config.data), tmp_path / "run", quiet=True)
    assert (done.predicted is None) == alone
    if done.predicted is not None:
        given: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
        made = embed(tmp_path / "run", other.path, tmp_path / "e.h5ad", **given)
        names = pose(other, config.data).label.names
        told = made.table["deconfound_predicted"].iloc[done.predicted.row]
        assert told.tolist() == [names[code] for code in done.predicted.label]
