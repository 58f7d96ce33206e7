"""A sweep whose entry is trained on what another entry imputes."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.experiments.running.messages import run_directory
from deconfound.runs.run import open_run
from deconfound.studies.compare import compare


def test_what_is_needed_is_done_first(screen: Screen, tmp_path: Path) -> None:
    """With two processes too; the run names its own sweep's, and the scores its title."""
    values = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "training": {"steps": 3, "batch_size": 24, "device": "cpu", "precision": "32"},
        "methods": {
            "redrawn": {"method": "erm", "intervene": "ist", "intervention": {"bank": 3}},
            "ist": {"options": {"transfer_steps": 2}},
        },
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    done = compare(file, tmp_path / "out", workers=2, quiet=True).summary
    assert done is not None
    assert (done.runs, done.failed) == (2, 0)
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    redrawn = open_run(run_directory(tmp_path / "out", table.loc["redrawn", "runs"]))
    source = run_directory(tmp_path / "out", table.loc["ist", "runs"])
    assert redrawn.config.intervention.intervene == source.resolve()
    assert set(pd.read_parquet(tmp_path / "out" / "scores.parquet")["method"]) == {"erm+ist", "ist"}
    again = compare(file, tmp_path / "out", workers=2, quiet=True).summary
    assert again is not None
    assert (again.before, again.workers) == (2, 0)


def test_a_recipe_says_how_it_intervenes(screen: Screen, tmp_path: Path) -> None:
    """The entry's own words count more, and the default that is said is the default unsaid."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: erm\nintervention: {impute_into: mean, bank: 3}\n")
    values = {"screens": [str(screen.path)], "folds": ["plate=S1/P1"], "seeds": [0]}
    entries = {
        "ist": {},
        "own": {"method": "erm", "config": "recipe.yaml", "intervene": "ist"},
        "said": {"method": "erm", "config": "recipe.yaml", "intervene": "ist"}
        | {"intervention": {"impute_into": "drawn", "bank": 32}},
        "plain": {"method": "erm", "intervene": "ist"},
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | {"methods": entries}))
    plan = make_plan(file)
    names = {setting.entry: setting.runs[0] for setting in plan.settings}
    own = plan.jobs[names["own"]].config.intervention
    assert (own.impute_into, own.bank) == ("mean", 3)
    assert names["said"] == names["plain"] != names["own"]
    dumped = plan.jobs[names["plain"]].config.model_dump(mode="json")["intervention"]
    assert "impute_into" not in dumped
    values["methods"] = {"alone": {"method": "erm", "config": "recipe.yaml"}}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=r"methods\.alone: intervention belongs to intervene; add it"
    ):
        make_plan(file)
