"""--standardise-by in comparisons: of a screen, of a plan, in a search."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.runs.run import open_run
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions
from deconfound.studies.trade_off import plan_values

NOTE = "unseen groups standardised with images of test rows"
TRAINING = {"steps": 2, "batch_size": 16, "device": "cpu", "precision": "32"}


def test_every_method_of_a_screen_standardises(screen: Screen, tmp_path: Path) -> None:
    options = CompareOptions(
        methods=("erm", "erm+knn"), hold_out=("plate",), folds_per_level=1, seeds=(0,), steps=2,
        batch_size=16, standardise_by="plate", standardise="robust", view="levels",
    )  # fmt: skip
    found = compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert found.sentences.count(f"erm: {NOTE}, without their labels.") == 1
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(scores["method"]) == {"erm", "erm+knn"}
    assert scores["note"].str.contains(NOTE).all()
    runs = [open_run(path) for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()]
    assert {run.standardise_by for run in runs} == {("series", "plate")}
    assert {run.config.data.standardise for run in runs} == {"robust"}


def test_a_search_takes_one_form_and_says_so(screen: Screen, tmp_path: Path) -> None:
    values = {
        "screens": [str(screen.path)], "folds": ["plate=S1/P1"], "training": TRAINING,
        "methods": {
            "plain": {"method": "erm"},
            "alike": {
                "method": "erm",
                "data": {"standardise_by": "plate"},
                "grid": {"standardise": ["moments", "quantiles"]},
            },
        },
    }  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(values))
    found = compare(file, tmp_path / "out", workers=1, quiet=True)
    assert found.summary is not None
    assert (found.summary.runs, found.summary.failed) == (3, 0)
    assert found.sentences == [f"alike: {NOTE}, without their labels."]
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    told = scores["note"].str.contains(NOTE)
    assert (told == (scores["entry"] == "alike")).all()
    assert set(scores["method"][told]) == {"erm-da"}


def test_a_plan_without_it_has_the_names_that_it_had(screen: Screen, tmp_path: Path) -> None:
    """A run's name is a hash of its configuration, which holds no default of these options."""
    names = []
    for data in ({}, {"standardise_with": "all", "standardise": "moments"}):
        values = {"screens": [str(screen.path)], "folds": ["iid"], "methods": {"erm": {}}}
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(values | {"data": data}))
        names.append(list(make_plan(file).jobs))
    assert names[0] == names[1]


def test_a_trade_off_standardises_too(screen: Screen) -> None:
    options = CompareOptions(standardise_by="plate", standardise_with="controls")
    assert plan_values(screen.path, options)["data"] == {
        "standardise_by": "plate", "standardise_with": "controls",
    }  # fmt: skip
    assert "data" not in plan_values(screen.path, CompareOptions())


def test_mistakes_are_one_line_before_anything_is_written(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, said in (
        ({"standardise": "robust"}, "--standardise robust belongs to --standardise-by; add it"),
        ({"standardise_by": "plat"}, "no column 'plat'; did you mean 'plate'"),
        ({"standardise_by": "plate", "methods": ("erm+ist",)}, "--standardise-by plate makes them"),
    ):
        asked = CompareOptions(**{"methods": ("erm",), **options})  # type: ignore[arg-type]
        with pytest.raises(UserError, match=said) as error:
            compare(screen.path, out, asked, quiet=True)
        assert "\n" not in str(error.value)
        assert not out.exists()
