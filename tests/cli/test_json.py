"""--json: one document on stdout and nothing else, for every verb that prints a table."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from deconfound import cli, methods
from deconfound.cli import arguments, scoring_arguments
from deconfound.cli.documents import print_document, records
from deconfound.data import sources
from deconfound.data.screens.screen import Screen
from deconfound.evaluation.scores import COLUMNS
from deconfound.experiments.overhead import Summary
from deconfound.methods import post_hoc
from deconfound.metrics.score import all_metrics
from deconfound.studies.comparison import Comparison

Said = pytest.CaptureFixture[str]
SCORES = pd.DataFrame(
    [["m", "plate=P1", 0, "prediction", "macro_f1", "test", 0.1 + 0.2, 9, "", "{}"],
     ["m", "plate=P1", 0, "prediction", "macro_f1", "val", math.nan, 9, "few", "{}"]],
    columns=COLUMNS,
)  # fmt: skip


def document(words: list[str], said: Said) -> dict[str, Any]:
    """What stdout holds after a command, read as JSON."""
    said.readouterr()
    cli.main([*words, "--json"])
    out = said.readouterr().out
    assert out.isascii()
    found: dict[str, Any] = json.loads(out, parse_constant=_no_constant)
    return found


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_numbers_are_exact_and_what_is_missing_is_null(capsys: Said) -> None:
    table = pd.DataFrame(
        {
            "f": [0.1 + 0.2, math.nan],
            "i": pd.array([1, None], dtype="Int64"),
            "n": np.array([2, 3], dtype=np.int64),
            "t": ["µ\x1b[1m", None],
            "c": pd.Categorical(["a", None]),
            "b": [True, False],
        }
    )
    print_document({"rows": records(table), "range": (1.0, math.inf), "path": Path("a")})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert json.loads(printed) == {
        "rows": [
            {"f": 0.1 + 0.2, "i": 1, "n": 2, "t": "µ\x1b[1m", "c": "a", "b": True},
            {"f": None, "i": None, "n": 3, "t": None, "c": None, "b": False},
        ],
        "range": [1.0, None],
        "path": "a",
    }


def test_lists(capsys: Said) -> None:
    found = document(["list", "methods"], capsys)["methods"]
    assert [one["name"] for one in found if not one["post_hoc"]] == methods.names()
    assert [one["name"] for one in found if one["post_hoc"]] == list(post_hoc.names())
    assert found[0]["summary"] == methods.load(found[0]["name"]).SUMMARY
    metrics = document(["list", "metrics"], capsys)["metrics"]
    assert [one["name"] for one in metrics] == [one.name for one in all_metrics().values()]
    assert metrics[0]["range"] == [0.0, 1.0]
    listed = document(["list", "sources"], capsys)["sources"]
    assert [one["name"] for one in listed] == list(sources.discover())


def test_describe(screen: Screen, tmp_path: Path, capsys: Said) -> None:
    words = ["describe", str(screen.path), "--out", str(tmp_path / "out"), "--quiet"]
    found = document(words, capsys)
    assert found["counts"]["images"] == 96
    assert (found["label"], found["environment"]) == ("compound", ["plate"])
    assert [one["level"] for one in found["levels"]] == ["series", "plate", "section"]
    assert sum(one["images"] for one in found["occupancy"]) == 96
    assert {one["channel"] for one in found["statistics"]} == {"a", "b"}
    assert {"plate=S1/P1"} < {one["fold"] for one in found["folds"]}
    assert Path(found["page"]).is_file()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("deconfound.evaluation.measure:measure", ["a.h5ad"]),
        ("deconfound.evaluation.relations:relations", ["a.h5ad", "--complexes", "c.tsv"]),
        ("deconfound.evaluation.retrieval:retrieval", ["a.h5ad", "--retrieval"]),
        ("deconfound.counterfactuals.judge:imputation", ["RUN", "screen"]),
    ],
)
def test_measure(
    function: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    """Every score, not the lines of the summary; a library that prints does no harm."""
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    module, _, name = function.partition(":")

    def scored(*_: object, **given: object) -> pd.DataFrame:
        assert "as_json" not in given
        print("a library prints")
        return SCORES

    monkeypatch.setattr(importlib.import_module(module), name, scored)
    found = document(["measure", *words, "--out", "s.parquet"], capsys)
    assert found["out"] == "s.parquet"
    assert [list(one) for one in found["scores"]] == [COLUMNS] * 2
    assert [one["value"] for one in found["scores"]] == [0.1 + 0.2, None]


def test_measure_of_a_file(
    finished_runs: Callable[[str], Path], screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    file, scores = tmp_path / "e.h5ad", tmp_path / "s.parquet"
    words = ["embed", str(finished_runs("erm")), str(screen.path), "--out", str(file)]
    cli.main([*words, "--device", "cpu", "--quiet"])
    found = document(["measure", str(file), "--out", str(scores)], capsys)["scores"]
    written = pd.read_parquet(scores)
    known = written["value"].notna()
    assert [one["value"] is not None for one in found] == known.tolist()
    values = [one["value"] for one in found if one["value"] is not None]
    assert values == written.loc[known, "value"].tolist()


@pytest.mark.parametrize("failed", [0, 2])
def test_compare(failed: int, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    """Failed runs end the command with 2 and a line on stderr, the document being whole."""
    table = pd.DataFrame({"method": ["erm"], "held out": ["0.5"]})
    summary = Summary(4, 1, failed, 0, 1, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0, 0.125)
    found = Comparison(table, ["It helps."], summary, Path("page.html"), out=Path("study"))

    def compared(*_: object, **__: object) -> Comparison:
        print("a library prints")
        return found

    monkeypatch.setattr("deconfound.studies.compare.compare", compared)
    words = ["compare", "screen", "--out", "study"]
    if failed:
        with pytest.raises(SystemExit, match="2"):
            cli.main([*words, "--json"])
        out, err = capsys.readouterr()
        assert err.splitlines()[-1].startswith("deconfound: 2 runs failed;")
        said = json.loads(out)
    else:
        said = document(words, capsys)
    assert said["table"] == [{"method": "erm", "held out": "0.5"}]
    assert said["sentences"] == ["It helps."]
    assert (said["out"], said["verdict"]) == ("study", None)
    assert (said["summary"]["runs"], said["summary"]["failed"]) == (4, failed)
    assert said["report"] == str(Path("page.html").resolve())


def test_a_mistake_leaves_stdout_empty(tmp_path: Path, capsys: Said) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["describe", str(tmp_path / "none"), "--json"])
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_every_verb_that_prints_a_table_has_the_flag() -> None:
    """A verb that begins to print tables takes --json too, and is tested here."""
    folder = Path(cli.__file__).parent
    printing = {
        file.stem
        for file in folder.glob("*.py")
        if {"print_table(", "print_lines("} & set(_calls(file)) and file.stem != "printing"
    }
    assert printing == {"comparing", "lists", "scoring", "screens"}
    with_flag = {
        name
        for name, model in (vars(arguments) | vars(scoring_arguments)).items()
        if isinstance(model, type)
        and issubclass(model, BaseModel)
        and "as_json" in model.model_fields
    }
    assert with_flag == {
        "Tabled", "ListArguments", "ScoresArguments", "MeasureArguments", "RelationsArguments",
        "RetrievalArguments", "ImputationArguments", "DescribeArguments", "CompareArguments",
    }  # fmt: skip


def _calls(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return [name for name in ("print_table(", "print_lines(") if name in text]
