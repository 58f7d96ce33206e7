"""JSON schemas of runs, plans and verdicts take what deconfound takes, and no misspelt option."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deconfound import cli, methods
from deconfound.cli.schemas import SCHEMAS
from deconfound.experiments.plan_file import read_plan
from deconfound.runs.config import config_model, dump_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def checker(name: str, said: pytest.CaptureFixture[str]) -> jsonschema.Draft202012Validator:
    cli.main(["--schema", name])
    schema = json.loads(said.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(schema: jsonschema.Draft202012Validator, value: Any) -> list[str]:
    return [error.message for error in schema.iter_errors(value)]


def test_every_recipe_is_a_run_or_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    run, plan = checker("run", capsys), checker("plan", capsys)
    assert len(RECIPES) > 40
    for file in RECIPES:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert problems(plan if "folds" in value else run, value) == [], file.name


def test_the_defaults_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    run = checker("run", capsys)
    for name in methods.names():
        assert problems(run, yaml.safe_load(dump_config(config_model(name)()))) == [], name


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"method": "erm", "options": {"alpha": 1}}, "alpha"),
        ({"method": "scbd", "options": {"temperature": 0}}, "0"),
        ({"method": "scbdd"}, "scbdd"),
        ({"method": "erm", "data": {"folds": "x"}}, "folds"),
        ({"method": "erm", "training": {"steps": 0}}, "0"),
        ({"method": "erm", "traning": {}}, "traning"),
    ],
)
def test_a_mistake_in_a_run(
    value: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = problems(checker("run", capsys), value)
    assert found
    assert said in " ".join(found)


def test_a_mistake_in_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = checker("plan", capsys)
    right = {"screens": ["s"], "folds": ["iid"], "methods": {"erm": None}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(right), encoding="utf-8")
    assert read_plan(tmp_path / "plan.yaml").methods["erm"].method is None
    assert problems(plan, right) == []
    assert problems(plan, right | {"data": {"labl": "x"}})
    assert problems(plan, right | {"methods": {"erm": {"training": {"stps": 1}}}})
    assert problems(plan, right | {"select": ["acc"]})
    assert problems(plan, {"screens": ["s"], "folds": ["iid"]})
    tuned = {"search": {"trials": 3}, "ranges": {"steps": {"low": 1, "high": 9}}}
    assert problems(plan, right | {"methods": {"erm": tuned}}) == []
    assert problems(plan, right | {"methods": {"erm": tuned | {"search": {"trials": 0}}}})
    assert problems(plan, right | {"methods": {"erm": tuned | {"ranges": {"steps": [1, 9]}}}})


def test_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = checker("verdict", capsys)
    score = {"mean": 0.5, "sd": None, "n": 1, "chance": 0.1}
    value = {
        "format": 1, "source": "s", "label": "l", "environment": "e", "hold_out": ["e"],
        "verdict": "helps", "sentence": "", "why": "", "chosen_by": "", "recommended": "erm",
        "baseline": "erm", "difference": None,
        "methods": {"erm": {
            "held_out": score, "in_distribution": score, "environment_readable": score,
            "biology_kept": None, "chosen_by_score": None, "difference": None,
            "saw_held_out": False,
        }},
    }  # fmt: skip
    assert problems(verdict, value) == []
    assert problems(verdict, value | {"verdict": "maybe"})


def test_an_unknown_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--schema", "plam"], ["--schema=plam"], ["--schema"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        err = capsys.readouterr().err
        assert "--schema: unknown file" in err
        assert all(name in err for name in (SCHEMAS if words == ["--schema"] else ["plan"]))
