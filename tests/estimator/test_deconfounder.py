"""`Deconfounder` as an estimator: parameters, what is kept, what it says, what it leaves."""

import copy
import json
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import f1_score
from sklearn.utils.validation import check_is_fitted

from deconfound import Deconfounder
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.errors import UserError
from deconfound.estimator import model as model_module
from deconfound.methods.scbd import ALPHAS
from deconfound.runs.config import RunConfig
from deconfound.runtime.stop import Stopped
from deconfound.training import fit as fit_module

Pixels = npt.NDArray[np.uint16]


def block(found: Any) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = found.obsm["X_representation"]
    return values


def test_parameters_are_kept_as_given_and_cloned() -> None:
    levels = ["series", "plate"]
    model = Deconfounder("scbd", alpha="auto", levels=levels, no_such_option=1)
    given = {"method": "scbd", "quiet": False, "alpha": "auto", "levels": levels}
    assert model.get_params() == given | {"no_such_option": 1}
    assert model.get_params()["levels"] is levels
    other = clone(model)
    assert other.get_params() == model.get_params()
    assert other.set_params(alpha=2.0, method="erm", quiet=True) is other
    assert other.get_params()["alpha"] == 2.0 and model.get_params()["alpha"] == "auto"
    assert repr(other).startswith("Deconfounder('erm', quiet=True, alpha=2.0, levels=")
    assert repr(Deconfounder()) == "Deconfounder()"


def test_before_fit_it_says_so_and_afterwards_it_is_fitted(
    fitted: Deconfounder, images: Pixels, tmp_path: Path
) -> None:
    model = clone(fitted)
    for call in (model.transform, model.predict, lambda data: model.score(data, ["c0"])):
        with pytest.raises(UserError, match="not fitted yet; call fit first"):
            call(images)
    with pytest.raises(UserError, match="not fitted yet"):
        model.save(tmp_path / "run")
    assert not hasattr(model, "classes_")
    assert not model.__sklearn_is_fitted__()
    check_is_fitted(fitted)
    assert fitted.classes_ == ("c0", "c1", "c2")
    assert fitted.environments_ == ("S1P1", "S1P2", "S2P1", "S2P2")
    assert fitted.config_["training"]["steps"] == 2


def test_a_fit_that_fails_leaves_no_model(fitted: Deconfounder, images: Pixels) -> None:
    model = copy.deepcopy(fitted)
    with pytest.raises(UserError):
        model.fit(images, ["c0"] * 3, ["p"] * 3)
    assert not model.__sklearn_is_fitted__()


def test_copies_embed_alike(fitted: Deconfounder, images: Pixels, tmp_path: Path) -> None:
    expected = block(fitted.transform(images))
    fitted.save(tmp_path / "run")
    copies = [pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)]
    for one in [*copies, Deconfounder.load(tmp_path / "run")]:
        np.testing.assert_array_equal(block(one.transform(images)), expected)
        assert one.get_params() == fitted.get_params()
    with pytest.raises(UserError, match=r"already exists.*choose another path"):
        fitted.save(tmp_path / "run")


def test_a_run_of_the_command_line_brings_its_options(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("erm", seed=3, options={"learning_rate": 0.004})
    fit_module.fit(config, screen.path, tmp_path / "run", quiet=True)
    model = Deconfounder.load(tmp_path / "run").set_params(quiet=True)
    found = model.get_params()
    assert found["method"] == "erm" and found["seed"] == 3 and found["learning_rate"] == 0.004
    assert found["fold"] == "plate=S1/P1" and found["val_fraction"] == 0.2
    assert "weight_decay" not in found
    again = clone(model).fit(screen)
    np.testing.assert_array_equal(block(again.transform(screen)), block(model.transform(screen)))


def test_a_note_of_another_release_or_damaged_is_refused(
    fitted: Deconfounder, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "run")
    note = tmp_path / "run" / "deconfounder.json"
    known = json.loads(note.read_text())
    note.write_text("{}")
    with pytest.raises(UserError, match=r"deconfounder.json: changed since the run ended"):
        Deconfounder.load(tmp_path / "run")
    (tmp_path / "run" / "checksums.json").unlink()
    note.write_text(json.dumps(known | {"format_version": 9}))
    with pytest.raises(UserError, match="format version 9; this release reads 1"):
        Deconfounder.load(tmp_path / "run")
    note.write_text("{")
    with pytest.raises(UserError, match="damaged; restore a copy"):
        Deconfounder.load(tmp_path / "run")
    with pytest.raises(UserError, match="not a run"):
        Deconfounder.load(tmp_path)


def test_nothing_is_left_on_disk(
    fitted: Deconfounder, images: Pixels, screen: Screen, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither in the folder of temporary files nor where the work is done, also after an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = clone(fitted).fit(images, screen.table["compound"], screen.table["plate"])
    model.transform(images)
    assert repr(model) and model._repr_html_()

    def fail(*_: Any, **__: Any) -> None:
        assert any(tmp_path.iterdir())
        raise OSError("the disk is gone")

    monkeypatch.setattr(model_module, "train", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        model.fit(images, screen.table["compound"], screen.table["plate"])
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_those_of_transform_and_are_scored_by_macro_f1(
    fitted: Deconfounder, images: Pixels, screen: Screen
) -> None:
    predicted = fitted.predict(images)
    np.testing.assert_array_equal(predicted, fitted.transform(images).obs[PREDICTED].astype(str))
    truth = screen.table["compound"].to_numpy(dtype=str)
    expected = f1_score(truth, predicted, average="macro", labels=["c0", "c1", "c2"])
    assert fitted.score(images, truth) == pytest.approx(expected)
    unseen = truth.copy()
    unseen[:10] = "never seen"
    known = f1_score(unseen[10:], predicted[10:], average="macro", labels=["c0", "c1", "c2"])
    assert fitted.score(images, unseen) == pytest.approx(known)
    with pytest.raises(UserError, match="no row has a label of training, which are c0, c1, c2"):
        fitted.score(images, ["x"] * 96)
    with pytest.raises(UserError, match="score: no label; give label="):
        fitted.score(images)


def test_labels_that_were_numbers_are_predicted_as_numbers(
    images: Pixels, screen: Screen, few: dict[str, Any], tmp_path: Path
) -> None:
    number = screen.table["compound"].str[1:].astype("int64")
    model = Deconfounder("erm", quiet=True, **few).fit(images, number, screen.table["plate"])
    model.save(tmp_path / "run")
    for one in (model, Deconfounder.load(tmp_path / "run")):
        found = one.predict(images)
        assert found.dtype == np.int64
        assert set(found) <= {0, 1, 2}


def test_a_method_without_a_classifier_predicts_nothing(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    options = few | {"width": 4, "max_width": 8, "mapping_width": 8}
    model = Deconfounder("stargan2", quiet=True, **options)
    model.fit(images, screen.table["compound"], screen.table["plate"])
    with pytest.raises(UserError, match="stargan2 predicts no label"):
        model.predict(images)


def test_a_notebook_shows_it_and_hostile_names_as_text(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    hostile = screen.table["compound"].replace({"c1": "<img src=x onerror=alert(1)>"})
    model = Deconfounder("scbd", quiet=True, alpha=2.0, block_size=16, decoder="none", **few)
    assert "not yet" in model._repr_html_()
    shown = model.fit(images, hostile, screen.table["plate"])._repr_html_()
    assert "<img" not in shown and "&lt;img src=x onerror=alert(1)&gt;" in shown
    for part in ("Deconfounder: scbd", "alpha", "2.0", "fold iid, seed 0", "3: ", "2: P1, P2"):
        assert part in shown


def test_it_says_what_is_recommended_unless_it_is_quiet(
    images: Pixels, screen: Screen, few: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = images, screen.table["compound"], screen.table["plate"]
    Deconfounder(quiet=True, **few).fit(*told).transform(images, screen.table["plate"])
    assert capsys.readouterr() == ("", "")
    model = Deconfounder(**few).fit(*told)
    said = capsys.readouterr()
    assert said.out.startswith("recommended: erm on images whose environments are made alike")
    assert "Deconfounder" in said.err  # the bar
    assert model.config_["data"]["standardise"] == "spectra"


def test_a_warning_of_training_is_one_of_python(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    even = images.copy()
    even[:, 1] = 7
    with pytest.warns(UserWarning, match="^Deconfounder: 1 of 2 channels do not vary") as said:
        Deconfounder("erm", quiet=True, **few).fit(
            even, screen.table["compound"], screen.table["plate"]
        )
    assert said[0].filename == __file__  # the user's line, and not one of ours


@pytest.mark.parametrize("how", ["mask", "level", "parts", "column", "option"])
def test_rows_can_be_held_out(
    how: str, images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    table = screen.table.assign(part=np.where(screen.table["series"] == "S2", "test", "train"))
    table.loc[:9, "part"] = "val"
    held = table["part"] == "test"
    told: dict[str, Any] = {"levels": ["series", "plate"], "table": table}
    match how:
        case "mask":
            given: dict[str, Any] = {"hold_out": held, "table": table}
        case "level":
            given = told | {"hold_out": "series=S2"}
        case "parts":
            given = told | {"hold_out": table["part"].to_numpy()}
        case "column":
            given = told | {"hold_out": "part"}
        case _:
            given, few = told, few | {"hold_out": "series=S2"}
    model = Deconfounder("erm", quiet=True, **few)
    found = model.fit_transform(images, "compound", "plate", **given)
    np.testing.assert_array_equal(found.obs[PART] == "test", held)
    expected = {"train", "val", "test"} | (set() if how in ("parts", "column") else {"id_test"})
    assert set(found.obs[PART]) == expected


def test_an_environment_given_as_an_array_can_be_held_out(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    plate = screen.table["plate"].to_numpy()
    model = Deconfounder("erm", quiet=True, hold_out="environment=P2", **few)
    found = model.fit_transform(images, screen.table["compound"], plate)
    np.testing.assert_array_equal(found.obs[PART] == "test", plate == "P2")
    assert model.environments_ == ("P1",)


def test_a_fit_that_is_stopped_says_that_nothing_is_kept(
    images: Pixels, screen: Screen, few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Stopped("saved at step 3; the same command resumes")

    monkeypatch.setattr(model_module, "train", stopped)
    with pytest.raises(Stopped, match=r"^Deconfounder: stopped, nothing is kept; fit it again$"):
        Deconfounder("erm", quiet=True, **few).fit(
            images, screen.table["compound"], screen.table["plate"]
        )


def test_it_trains_on_what_another_run_imputes(
    source: Path, screen: Screen, images: Pixels, make_config: Callable[..., RunConfig],
    few: dict[str, Any], tmp_path: Path,
) -> None:  # fmt: skip
    """The images are the screen's, so its run may impute them; saved, the model stands alone."""
    data = make_config("erm").data
    model = Deconfounder(
        "erm", quiet=True, intervene=source, fold=data.fold, val_fraction=data.val_fraction,
        controls=data.controls or None, **few,
    )  # fmt: skip
    found = model.fit_transform(
        images, "compound", "plate", table=screen.table,
        levels=screen.roles.levels, channels=screen.channels,
    )  # fmt: skip
    assert model.config_["intervention"]["intervene"] == str(source)
    model.save(tmp_path / "run")
    loaded = Deconfounder.load(tmp_path / "run").set_params(quiet=True)
    np.testing.assert_array_equal(block(loaded.transform(screen)), block(found))


def test_a_dial_that_sets_itself_is_shown(
    images: Pixels, screen: Screen, few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALPHAS, "balanced", (0.0, 2.0))
    model = Deconfounder("scbd", quiet=True, alpha="auto", block_size=16, decoder="none", **few)
    model.fit(images, screen.table["compound"], screen.table["plate"])
    assert set(model.config_["chosen"]) == {"alpha"}
    assert "alpha chosen" in model._repr_html_()
    assert model.get_params()["alpha"] == "auto"


@pytest.mark.parametrize("how", ["labels", "mask"])
def test_controls_are_labels_or_marked_rows(
    how: str, images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    """Both ways the same rows count, in `fit` and of an environment never seen."""
    negative = (screen.table["compound"] == "c0").to_numpy()
    controls: Any = "c0" if how == "labels" else negative
    model = Deconfounder(
        "erm", quiet=True, standardise_by="environment", standardise_with="controls", **few
    )
    compound, plate = screen.table["compound"], screen.table["plate"]
    model.fit(images, compound, plate, controls=controls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if how == "labels":
            found = model.transform(images, ["P9"] * 96, label=compound)
        else:
            found = model.transform(images, ["P9"] * 96, controls=negative)
    assert np.isfinite(block(found)).all()
    with pytest.raises(UserError, match="negative controls is unknown"):
        model.transform(images, ["P9"] * 96)


def test_a_screen_takes_labels_as_an_array(
    screen: Screen, images: Pixels, few: dict[str, Any]
) -> None:
    """The images stay where they are; the screen on disk is not changed."""
    before = {file.name: file.stat().st_mtime_ns for file in screen.path.iterdir()}
    mine = pd.Series(np.arange(96) % 2, name="mine")
    model = Deconfounder("erm", quiet=True, **few)
    found = model.fit_transform(screen, mine)
    assert model.classes_ == ("0", "1")
    np.testing.assert_array_equal(found.obs["mine"], mine)
    assert {file.name: file.stat().st_mtime_ns for file in screen.path.iterdir()} == before
    other = model.fit_transform(images, mine, table=screen.table, environment="plate",
                                levels=["series", "plate", "section"])  # fmt: skip
    assert block(other).shape == block(found).shape
