"""The recommended recipe as a row of a comparison and as an entry of a plan."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deconfound.config import validated
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.words import read_rows
from deconfound.runs.config import STANDARDISED
from deconfound.studies import levels
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

CHOICE = (
    "recommended: erm on images whose environments are made alike in spectra, taken over all "
    "images; every environment has at least 16 images, but no row is marked as a control."
)


def planned(screen: Screen, **values: Any) -> Plan:
    wanted = {"screens": [str(screen.path)], "folds": ["iid", "plate=S1/P1"]} | values
    return make_plan(Path("plan.yaml"), validated(PlanFile, wanted, "plan.yaml"))


def test_without_methods_it_stands_between_erm_and_scbd(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []

    def laid_out(plan: Plan, *_: object) -> None:
        plans.append(plan)
        raise InterruptedError

    monkeypatch.setattr(levels, "execute", laid_out)
    options = CompareOptions(
        view="levels", hold_out=("plate",), folds_per_level=1, seeds=(0,), steps=7
    )
    with pytest.raises(InterruptedError):
        compare(screen.path, tmp_path / "out", options, quiet=True)
    (plan,) = plans
    assert [chain.name for chain in plan.chains] == ["erm", "recommended", "scbd"]
    assert [*plan.recommended] == [CHOICE]
    configs = {one.entry: plan.jobs[one.runs[0]].config for one in plan.settings}
    assert {config.training.steps for config in configs.values()} == {7}
    assert configs["erm"].data.standardise_by is None
    assert configs["recommended"].data.standardise == "spectra"
    assert configs["recommended"].training.augment == "dihedral"


def test_its_row_says_what_it_is_and_that_held_out_images_take_part(
    screen: Screen, tmp_path: Path
) -> None:
    options = CompareOptions(
        methods=("erm", "recommended", "recommended+knn"), hold_out=("plate",), folds_per_level=1,
        seeds=(0,), steps=2, batch_size=16, view="levels",
    )  # fmt: skip
    found = compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert found.shown["method"].tolist() == ["erm", "recommended", "recommended+knn"]
    assert found.sentences.count(CHOICE) == 1
    assert f"recommended: {STANDARDISED}, without their labels." in found.sentences
    assert (found.summary and found.summary.runs) == 4
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    told = scores["note"].str.contains(STANDARDISED)
    assert (told == scores["method"].str.startswith("recommended")).all()
    again = compare(screen.path, tmp_path / "out", options, workers=1, quiet=True)
    assert (again.summary and again.summary.before) == 4


def test_options_of_the_comparison_win(screen: Screen) -> None:
    values = {"data": {"standardise_by": "plate"}, "options": {"norm": "instance"}}
    plan = planned(screen, methods={"recommended": None}, **values)
    (found,) = {job.config.model_copy(update={"data": job.config.data.model_copy(
        update={"fold": "iid"})}).model_dump_json() for job in plan.jobs.values()}  # fmt: skip
    assert '"standardise_by":"plate"' in found
    assert '"standardise":"spectra"' in found
    assert '"norm":"instance"' in found
    assert '"learning_rate":0.002' in found


def test_a_plan_file_names_it_as_a_method_and_searches_it(screen: Screen, tmp_path: Path) -> None:
    grid = {"standardise": ["quantiles", "spectra"], "learning_rate": [0.01]}
    values = {
        "screens": [str(screen.path)], "folds": ["iid"],
        "methods": {"alike": {"method": "recommended", "grid": grid}},
        "training": {"steps": 3},
    }  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(values))
    configs = [job.config for job in make_plan(file).jobs.values()]
    assert [config.data.standardise for config in configs] == ["quantiles", "spectra"]
    assert {config.options.model_dump()["learning_rate"] for config in configs} == {0.01}
    assert {(c.training.schedule, c.training.threads) for c in configs} == {("cosine", 1)}
    assert all(name.startswith("erm-") for name in make_plan(file).jobs)


def test_rows_with_corrections_share_its_runs() -> None:
    rows, entries = read_rows(("recommended", "recommended+knn"))
    assert [row.entry for row in rows] == ["recommended", "recommended"]
    assert entries == {"recommended": {}}


def test_a_name_that_is_almost_it_is_answered() -> None:
    with pytest.raises(UserError, match=r"unknown method 'recomended'; did you mean 'recommended'"):
        read_rows(("recomended",))
    with pytest.raises(UserError, match="post hoc method"):
        read_rows(("symphony",))


def test_it_is_not_trained_on_imputed_images(screen: Screen, tmp_path: Path) -> None:
    options = CompareOptions(methods=("erm", "recommended+ist"), hold_out=("plate",))
    with pytest.raises(UserError) as refused:
        compare(screen.path, tmp_path / "out", options, quiet=True)
    assert str(refused.value) == (
        "compare: methods.recommended+ist: recommended is not trained on imputed images; name "
        "erm+ist, or leave ist out"
    )
    assert not (tmp_path / "out").exists()
