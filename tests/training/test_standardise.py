"""Runs with --standardise-by: what they may depend on, what they hold, how they go on."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconfound import methods
from deconfound.data.folds.problem import pose
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import InputWarning
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.run import Run, open_run
from deconfound.runtime.stop import Stopped
from deconfound.training.batches import reader_of
from deconfound.training.fit import fit

Make = Callable[..., RunConfig]
KINDS = ("moments", "quantiles", "robust", "spectra")


def asked(kind: str = "moments", **more: Any) -> dict[str, Any]:
    """Options of the data; without id_test each plate has 16 training rows or more."""
    return {"standardise_by": "plate", "standardise": kind, "id_test_fraction": 0} | more


def changed(screen: Screen, make_screen: Callable[..., Screen], path: Path, what: str) -> Screen:
    """The tiny screen with noise for what is named, "labels" and "pixels", of plate S1/P1."""
    table, images = screen.table.copy(), screen.read(np.arange(len(screen)))
    hidden = ((table["series"] == "S1") & (table["plate"] == "P1")).to_numpy()
    stream = np.random.default_rng(3)
    if "pixels" in what:
        images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    if "labels" in what:
        table.loc[hidden, "compound"] = stream.permutation(table.loc[hidden, "compound"])
    return make_screen(path, images, table, screen.roles)


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, "labels and pixels") for name in methods.names()] + [("erm", "labels")],
)
def test_of_held_out_rows_pixels_decide_what_is_embedded_of_them_and_nothing_else(
    name: str,
    what: str,
    screen: Screen,
    make_screen: Callable[..., Screen],
    make_config: Make,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    config = make_config(name, data=asked("quantiles"), training={"steps": 2, "validate_every": 1})
    runs, found = [], []
    for place, noisy in enumerate(("nothing", what)):
        other = changed(screen, make_screen, tmp_path / f"s{place}", noisy)
        runs.append(fit(config, other.path, tmp_path / f"r{place}", quiet=True).path)
        file = tmp_path / f"{place}.h5ad"
        made = embed(runs[-1], other.path, file, device="cpu", threads=1, quiet=True)
        found.append(next(iter(made.representations.values())))
    assert_same_run(*runs)
    hidden = made.part == "test"
    assert hidden.any()
    assert np.array_equal(found[0][~hidden], found[1][~hidden])
    assert np.allclose(found[0][hidden], found[1][hidden]) == ("pixels" not in what)


def test_with_controls_labels_of_held_out_treatments_change_nothing_and_their_pixels_only_them(
    screen: Screen,
    make_screen: Callable[..., Screen],
    make_config: Make,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the recommended recipe has it: tone curves and spectra of the negative controls."""
    for place in ("intensity", "standardisation"):
        monkeypatch.setattr(f"deconfound.data.loading.{place}.FEWEST", 8)
    data = asked("spectra", standardise_with="controls", controls=("c0",), fold="series=S1")
    config = make_config("erm", data=data | {"standardise_by": "series"}, training={"steps": 2})
    table, images = screen.table, screen.read(np.arange(len(screen)))
    treated = ((table["series"] == "S1") & (table["compound"] != "c0")).to_numpy()
    stream = np.random.default_rng(3)
    labels = table.copy()
    labels.loc[treated, "compound"] = stream.permutation(labels.loc[treated, "compound"])
    assert not labels.equals(table)
    noise = images.copy()
    noise[treated] = stream.integers(0, 60_000, noise[treated].shape)
    runs, found = [], []
    for place, (own, pixels) in enumerate(((table, images), (labels, images), (table, noise))):
        other = make_screen(tmp_path / f"s{place}", pixels, own, screen.roles)
        runs.append(fit(config, other.path, tmp_path / f"r{place}", quiet=True).path)
        file = tmp_path / f"{place}.h5ad"
        made = embed(runs[-1], other.path, file, device="cpu", threads=1, quiet=True)
        found.append(next(iter(made.representations.values())))
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0][~treated], found[2][~treated])
    assert not np.allclose(found[0][treated], found[2][treated])


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_training_rows_and_go_with_the_run(
    kind: str, screen: Screen, make_config: Make, tmp_path: Path
) -> None:
    config = make_config("erm", data=asked(kind))
    run = fit(config, screen.path, tmp_path / "run", quiet=True)
    assert run.standardise_by == ("series", "plate")
    assert run.groups == ("S1/P2", "S2/P1", "S2/P2")
    problem = pose(screen, config.data)
    assert problem.group is not None
    expected = fit_intensity(
        screen, problem.fold.rows("train"), "none", "standardise", 0, problem.group, kind,  # type: ignore[arg-type]
    )  # fmt: skip
    found = run.load(screen)[1].state_dict()
    assert found.keys() == expected.state_dict().keys() == {"offset", "scale", "statistics"}
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_a_run_without_the_option_says_nothing_of_it(
    finished_runs: Callable[[str], Path], screen: Screen
) -> None:
    path = finished_runs("erm")
    for file in ("config.yaml", "classes.json"):
        assert "standardise_by" not in (path / file).read_text()
    assert set(open_run(path).load(screen)[1].state_dict()) == {"offset", "scale"}


def test_a_configuration_is_read_back(make_config: Make, tmp_path: Path) -> None:
    config = make_config("erm", data=asked("robust", standardise_with="controls", controls=("c0",)))
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "c.yaml") == config
    assert config.title == "erm-da"


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    screen: Screen,
    make_config: Make,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config("erm", data=asked("quantiles"))
    whole = fit(config, screen.path, tmp_path / "whole", quiet=True).path
    from deconfound.training.loop import Training

    validate = Training._validate

    def ask(self: Training) -> None:
        validate(self)
        self.request.asked = self.position.done == 4

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_validate", ask)
        with pytest.raises(Stopped):
            fit(config, screen.path, tmp_path / "halves", quiet=True)
    halves = fit(config, screen.path, tmp_path / "halves", quiet=True).path
    assert_same_run(whole, halves)


def test_test_images_that_training_sees_are_like_their_own_group(
    screen: Screen, make_config: Make, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    """MixStyle-DA: without statistics of their own they would be as they were taken."""
    images = screen.read(np.arange(len(screen))).astype(np.uint16)
    hidden = ((screen.table["series"] == "S1") & (screen.table["plate"] == "P1")).to_numpy()
    images[hidden] = images[hidden] * 3 + 900
    other = make_screen(tmp_path / "s", images, screen.table, screen.roles)
    config = make_config("mixstyle", data=asked(), options={"domain_adaptation": True})
    problem = pose(other, config.data)
    train, test = (problem.fold.rows(part) for part in ("train", "test"))
    intensity = fit_intensity(other, train, "none", "standardise", 0, problem.group, "moments")
    before = intensity.statistics.clone()
    read = reader_of(config, other, problem, intensity, torch.device("cpu")).read(test).image
    torch.testing.assert_close(read.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    assert torch.equal(intensity.statistics, before)
    assert config.held_out_notes == [
        "trained with images of test rows",
        "unseen groups standardised with images of test rows",
    ]
    fit(config, other.path, tmp_path / "run", quiet=True)


def test_too_few_images_are_told_once(screen: Screen, make_config: Make, tmp_path: Path) -> None:
    """A section has 6 or 7 training rows of the two controls."""
    data = asked(standardise_with="controls", controls=("c0", "c1"), standardise_by="section")
    config = make_config("erm", data=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(config, screen.path, tmp_path / "run", quiet=True)
    said = [str(one.message) for one in caught if issubclass(one.category, InputWarning)]
    assert len(said) == 1
    assert "fewer than 16 rows to standardise by of S1/P2/A (" in said[0]


def test_a_validation_row_of_a_group_without_training_rows_is_predicted_anew(
    screen: Screen,
    make_config: Make,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """Training leaves it alone; `embed` has all rows of its group to standardise it by."""
    from deconfound.training.fit import train

    known = []
    for alone in (False, True):
        part = np.resize([*("train",) * 6, "val", "val", "id_test", "test"], len(screen))
        table = screen.table.assign(split=part, batch=screen.table["plate"])
        table.loc[part == "val", "batch"] = "Q" if alone else "P1"
        roles = screen.roles.model_copy(update={"split": "split"})
        images = screen.read(np.arange(len(screen)))
        other = make_screen(tmp_path / f"s{alone}", images, table, roles)
        config = make_config("erm", data={"fold": "given", "standardise_by": "batch"})
        done = train(config, other, pose(other, config.data), tmp_path / f"r{alone}", quiet=True)
        known.append(done.predicted is not None)
        assert isinstance(open_run(tmp_path / f"r{alone}"), Run)
    assert known == [True, False]
