"""A run's chain: each step is a file, made once, when the run ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deconfound.config import UserError
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.file import read_embeddings
from deconfound.evaluation.measure import measure
from deconfound.experiments.layout import make_plan
from deconfound.experiments.running.chain import Chain, Task, tasks_of, tasks_text
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, chain_scores_file, embeddings_file
from deconfound.experiments.words import read_chain
from deconfound.runs.config import RunConfig

PCA = Chain("erm+pca+knn", "erm", "pca", 3, {"components": 4})


def test_tasks_are_told_as_text() -> None:
    tasks = [Task(PCA, True), Task(Chain("erm", "erm"), False)]
    assert tasks_of(tasks_text(tasks)) == tasks


def test_files_of_other_options_have_other_names() -> None:
    other = Chain("erm+pca+knn", "erm", "pca", 3, {"components": 5})
    plain = Chain("erm+pca+knn", "erm", "pca", 3)
    names = {chain.stem("run") for chain in (PCA, other, plain)}
    assert len(names) == 3
    assert plain.stem("run") == "run+pca+knn3"
    assert (PCA.word, Chain("erm", "erm").word) == ("erm+pca+knn", "erm")


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_is_embedded_corrected_and_measured_when_it_ends(
    whole: bool, screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("erm", training={"steps": 2})
    tasks = tasks_text([Task(PCA, whole), Task(Chain("erm", "erm"), whole)])
    text = config.model_dump_json()
    order = Order(
        "r", str(screen.path), screen.identity, "erm", text, str(tmp_path), tasks
    )  # fmt: skip
    assert Runner().run(order).reason == ""
    corrected = embeddings_file(tmp_path, PCA.stem("r"))
    opened = read_embeddings(corrected)
    assert opened.representations["representation"].shape[1] == 4
    file = chain_scores_file(tmp_path, PCA.stem("r") + ("" if whole else "-predictions"))
    found, measured = pd.read_parquet(file), measure([corrected], quiet=True)
    if not whole:
        measured = measured[measured["representation"] == "prediction"]
    shared = ["metric", "part", "value", "n"]
    pd.testing.assert_frame_equal(found[shared], measured[shared].reset_index(drop=True))
    assert chain_scores_file(tmp_path, "r").exists() == whole  # else its predictions are scored
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert Runner().run(order).reason == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_chain_that_fails_leaves_the_run_scored(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("erm", training={"steps": 2})
    broken = Chain("erm+tvn", "erm", "tvn")
    order = Order(
        "r", str(screen.path), screen.identity, "erm", config.model_dump_json(), str(tmp_path),
        tasks_text([Task(broken, False)]),
    )  # fmt: skip
    reason = Runner().run(order).reason
    assert "control" in reason
    assert json.loads((tmp_path / "results" / "r.json").read_text())["scores"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("emr", "unknown entry 'emr'; did you mean 'erm'"),
        ("erm+pcaa", "'pcaa' corrects nothing; did you mean 'pca'"),
        ("erm+knn+pca", "one correction at most, then knn"),
    ],
)
def test_a_chain_of_a_plan_that_cannot_be_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("+", r"\+")):
        read_chain(word, ["erm", "erm+ist"], 10, {})
    with pytest.raises(UserError, match="unknown option 'componnts'; did you mean 'components'"):
        read_chain("erm+pca", ["erm"], 10, {"pca": {"componnts": 3}})


def test_a_plan_tells_its_chains_for_the_setting_taken(screen: Screen, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "screens": [str(screen.path)], "folds": ["iid", "series=S1"], "measure": ["series=S1"],
        "methods": {"erm": None, "erm+ist": {"method": "erm", "intervene": "ist"}, "ist": None},
        "chains": ["erm", "erm+ist+pca"], "corrections": {"pca": {"components": 2}}, "knn": 3,
    }  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(values))
    plan = make_plan(file)
    tasks = {(s.entry, s.fold): plan.tasks(s) for s in plan.settings}
    assert tasks["erm", "iid"] == []
    assert tasks["erm", "series=S1"] == [Task(Chain("erm", "erm"), True)]
    (corrected,) = tasks["erm+ist", "iid"]
    assert (corrected.whole, corrected.chain.options) == (False, {"components": 2})
    assert tasks["ist", "iid"] == []
