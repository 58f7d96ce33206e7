"""What a search refuses, in one line: its options, its storage, and a missing extra."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.experiments.search import search

Said = pytest.CaptureFixture[str]
RATE = {"low": 0.001, "high": 0.1}
OPTUNA = "Optuna is not installed: pip install 'deconfound[optuna]'"


def write(folder: Path, screen: Screen, entry: dict[str, Any], **changed: Any) -> Path:
    """A plan of one entry, erm."""
    values: dict[str, Any] = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "data": {"val_fraction": 0.2},
        "training": {"steps": 2, "batch_size": 12, "device": "cpu"},
        "methods": {"erm": entry},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changed), encoding="utf-8")
    return file


def mistake(file: Path, said: Said) -> str:
    """The one line on stderr of a comparison into `out`, beside the file, that ends with 2."""
    said.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(file), "--out", str(file.parent / "out"), "--quiet"])
    printed = said.readouterr()
    assert stop.value.code == 2, printed.err
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"search": {"trials": 3, "sampler": "tpee"}, "ranges": {"learning_rate": RATE}},
            "option 'methods.erm.search.sampler' = 'tpee': Input should be 'tpe' or 'random'",
        ),
        (
            {"search": {"trials": 0}, "ranges": {"learning_rate": RATE}},
            "option 'methods.erm.search.trials' = 0: Input should be greater than or equal to 1",
        ),
        (
            {"search": {"sampler": "tpe"}, "ranges": {"learning_rate": RATE}},
            "option 'methods.erm.search.trials'",
        ),
        (
            {"search": {"trials": 3, "batch": 0}, "ranges": {"learning_rate": RATE}},
            "option 'methods.erm.search.batch' = 0: Input should be greater than or equal to 1",
        ),
        (
            {"search": {"trials": 3}},
            "methods.erm: search has nothing to draw from; name options under ranges",
        ),
        (
            {"ranges": {"learning_rate": RATE}},
            "methods.erm: ranges belong to search; add `search: {trials: 20}`",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"learning_rate": {"low": 1, "high": 1}}},
            "low is not below high; give two different numbers",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"learning_rate": RATE | {"low": 0, "log": True}}},
            "log has no logarithm of low; give a low above 0",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"steps": {"low": 2, "high": 9.5}}},
            "methods.erm.ranges.steps.high is 9.5; expected a whole number",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"schedule": RATE}},
            "methods.erm.ranges.schedule: the option is no number; list its values under grid",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"learning_rat": RATE}},
            "unknown option 'learning_rat' in ranges; did you mean 'learning_rate'",
        ),
        (
            {
                "search": {"trials": 3},
                "ranges": {"learning_rate": RATE},
                "grid": {"learning_rate": [0.1]},
            },
            "learning_rate stands in grid and in ranges; leave one out",
        ),
        (
            {"search": {"trials": 3}, "ranges": {"learning_rate": {"low": -1, "high": 1}}},
            "option 'options.learning_rate' = -1",
        ),
        (
            {"search": {"trials": 3}, "grid": {"schedule": ["constant", "cosinus"]}},
            "option 'training.schedule' = 'cosinus'",
        ),
        (
            {"search": {"trials": 20_000}, "ranges": {"learning_rate": RATE}},
            "20,000 runs are more than 10,000; give fewer values",
        ),
    ],
)
def test_a_mistake_in_a_search_is_one_line(
    entry: dict[str, Any], expected: str, screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    pytest.importorskip("optuna", reason=OPTUNA)
    said = mistake(write(tmp_path, screen, entry), capsys)
    assert said.startswith(f"deconfound: {tmp_path / 'sweep.yaml'}: ")
    assert expected in said
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_extra_is_named(
    screen: Screen, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    entry = {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}}
    said = mistake(write(tmp_path, screen, entry), capsys)
    assert "methods.erm: search needs the extra [optuna]: pip install 'deconfound[optuna]'" in said
    assert not (tmp_path / "out").exists()


def test_an_entry_of_trials_imputes_for_no_other(screen: Screen, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=OPTUNA)
    entries = {
        "erm": {"intervene": "ist"},
        "ist": {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}},
    }
    with pytest.raises(UserError, match="'ist', which has 3 trials; expected one setting"):
        make_plan(write(tmp_path, screen, {}, methods=entries))


def test_trials_without_one_environment_are_refused_before_any_runs(
    screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    pytest.importorskip("optuna", reason=OPTUNA)
    entry = {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}}
    changed = {"select": ["loto"], "data": {"environment": ["series"]}, "folds": ["series=S1"]}
    said = mistake(write(tmp_path, screen, entry, **changed), capsys)
    assert "trains on 1 environment; expected 2 or more" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def proposed(screen: Screen, tmp_path: Path) -> Path:
    """A plan whose three trials are proposed in `out`, and none is told."""
    pytest.importorskip("optuna", reason=OPTUNA)
    file = write(tmp_path, screen, {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}})
    plan = make_plan(file)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.yaml").write_text("")
    search(plan, tmp_path / "out", lambda *_: {})
    assert len(plan.settings) == 3
    return file


@pytest.mark.parametrize("harm", ["no database", "cut off", "a folder"])
def test_a_damaged_storage_is_one_line(harm: str, proposed: Path, capsys: Said) -> None:
    file = proposed.parent / "out" / "optuna.db"
    whole = file.read_bytes()
    if harm == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(b"no database" * 999 if harm == "no database" else whole[: 3 * 4096])
    said = mistake(proposed, capsys)
    assert said.startswith(f"deconfound: {file}: Optuna cannot use it (")
    assert "remove the file: the search then begins anew" in said
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seeds": [0, 1]}, "seeds"),
        ({"select": ["loss"]}, "rule"),
        ({"training": {"steps": 3, "batch_size": 12, "device": "cpu"}}, "configuration"),
        (
            {"methods": {"erm": {"search": {"trials": 3},
                                 "ranges": {"learning_rate": RATE | {"high": 1}}}}},
            "ranges and choices",
        ),
    ],
)  # fmt: skip
def test_a_storage_of_another_plan_is_one_line(
    changed: dict[str, Any], named: str, proposed: Path, screen: Screen, capsys: Said
) -> None:
    entry = {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}}
    said = mistake(write(proposed.parent, screen, entry, **changed), capsys)
    assert said.startswith(
        f"deconfound: {proposed.parent / 'out' / 'optuna.db'}: the search of erm on plate=S1/P1 "
        f"was begun with another {named} than the plan has now; choose another --out, or remove"
    )


def test_trials_of_somebody_else_are_refused(proposed: Path, screen: Screen, capsys: Said) -> None:
    import optuna

    storage = f"sqlite:///{proposed.parent / 'out' / 'optuna.db'}"
    (name,) = optuna.study.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    study.enqueue_trial({"x": 1})
    entry = {"search": {"trials": 4}, "ranges": {"learning_rate": RATE}}
    said = mistake(write(proposed.parent, screen, entry), capsys)
    assert f"trial 3 of {name} lacks values or has others than learning_rate; remove" in said


def test_a_path_of_any_characters_holds_the_storage(screen: Screen, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason=OPTUNA)
    entry = {"search": {"trials": 3}, "ranges": {"learning_rate": RATE}}
    out = tmp_path / "a b?c%20#{d}"
    for _ in range(2):
        search(make_plan(write(tmp_path, screen, entry)), out, lambda *_: {})
    assert [one.name for one in out.iterdir()] == ["optuna.db"]
    (out / "optuna.db").rename(tmp_path / "optuna.db")
    names = optuna.study.get_all_study_names(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert names == [f"erm, plate=S1/P1, {screen.name} {screen.identity[:8]}"]


def test_choices_may_be_anything_a_plan_may_say(screen: Screen, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=OPTUNA)
    grid = {"environment": [["plate"], ["plate", "section"]], "warmup_steps": [0, 1]}
    plan = make_plan(write(tmp_path, screen, {"search": {"trials": 8}, "grid": grid}))
    search(plan, tmp_path / "out", lambda *_: {})
    found = [setting.values for setting in plan.settings]
    assert all(values["environment"] in grid["environment"] for values in found)
    assert {values["warmup_steps"] for values in found} == {0, 1}
    again = make_plan(write(tmp_path, screen, {"search": {"trials": 8}, "grid": grid}))
    search(again, tmp_path / "out", lambda *_: {})
    assert [setting.values for setting in again.settings] == found


def test_steps_of_a_range_are_kept_and_said_to_nobody(
    screen: Screen, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """24 is the greatest batch size that steps of 8 reach."""
    pytest.importorskip("optuna", reason=OPTUNA)
    ranges = {
        "batch_size": {"low": 8, "high": 30, "step": 8},
        "learning_rate": {"low": 0.25, "high": 1, "step": 0.25},
    }
    entry = {"search": {"trials": 24, "sampler": "random"}, "ranges": ranges}
    plan = make_plan(write(tmp_path, screen, entry))
    search(plan, tmp_path / "out", lambda *_: {})
    found = [setting.values for setting in plan.settings]
    assert {values["batch_size"] for values in found} == {8, 16, 24}
    assert {values["learning_rate"] for values in found} == {0.25, 0.5, 0.75, 1.0}
    assert not [one for one in recwarn if "step" in str(one.message)]
