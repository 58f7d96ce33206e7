"""deconfound compare FILE.yaml through the command line: mistakes are one line and exit code 2."""

import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.experiments.layout import make_plan
from deconfound.experiments.running import executors
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, Outcome, run_directory
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

Said = pytest.CaptureFixture[str]


def write(folder: Path, screen: Screen, **changed: Any) -> Path:
    """A sweep file of one run of ERM, with the changes asked for."""
    few = {"steps": 2, "batch_size": 12, "device": "cpu", "precision": "32"}
    values: dict[str, Any] = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "data": {"val_fraction": 0.2},
        "training": few,
        "methods": {"erm": None},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changed), encoding="utf-8")
    return file


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        runner = Runner()
        yield from map(runner.run, orders)

    monkeypatch.setattr(executors, "run_local", run_here)


def mistake(file: Path, said: Said, *more: str) -> str:
    """The one line on stderr of a sweep into `out`, beside the file, that ends with 2."""
    said.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(file), "--out", str(file.parent / "out"), "--quiet", *more])
    printed = said.readouterr()
    assert stop.value.code == 2, printed.err
    (line,) = printed.err.splitlines()
    assert "Traceback" not in printed.out
    return line


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"methods": {"ermm": None}}, "unknown method 'ermm'; did you mean 'erm'"),
        ({"seed": [0]}, "unknown option 'seed'; did you mean 'seeds'"),
        ({"methods": {"erm": {"options": {"alpha": 1}}}}, "sweep.yaml: methods.erm"),
        ({"folds": ["plate=S9/P9"]}, "no such group; plate has S1/P1"),
        ({"folds": ["leave it"]}, "leave it"),
        ({"seeds": [0, 1], "search_seeds": [2]}, "expected seeds among 0, 1"),
        ({"seeds": ["one"]}, "seeds.0"),
        ({"seeds": 1}, "seeds"),
        ({"methods": ["erm"]}, "methods"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    changed: dict[str, Any], expected: str, screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    assert expected in mistake(write(tmp_path, screen, **changed), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["screens: [", "just words", "", "\x00"])
def test_a_file_that_is_no_sweep_is_one_line(text: str, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    assert "sweep.yaml" in mistake(tmp_path / "sweep.yaml", capsys)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: Said) -> None:
    assert "no.yaml" in mistake(tmp_path / "no.yaml", capsys)


@pytest.mark.usefixtures("_in_this_process")
def test_a_run_of_another_configuration_is_one_line(
    screen: Screen, tmp_path: Path, capsys: Said, make_config: Any
) -> None:
    file = write(tmp_path, screen)
    (name,) = make_plan(file).jobs
    other: RunConfig = make_config("erm", training={"steps": 1})
    fit(other, screen.path, run_directory(tmp_path / "out", name), quiet=True)
    (tmp_path / "out" / "sweep.yaml").write_text("")
    assert "1 run failed; " in mistake(file, capsys)
    (reason,) = pd.read_csv(tmp_path / "out" / "failures.csv")["reason"]
    assert "holds a run with another configuration" in reason
    assert name in reason


@pytest.mark.usefixtures("_in_this_process")
def test_a_method_that_needs_two_environments_says_so(
    screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    data = {"environment": ["series"], "val_fraction": 0.2}
    entries = {"coral": None, "dann": None, "scbd": {"options": {"decoder": "none"}}}
    file = write(tmp_path, screen, methods=entries, data=data, folds=["series=S1"])
    assert "3 runs failed; " in mistake(file, capsys)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    for method, reason in zip(
        failures["run"].str.split("-").str[0], failures["reason"], strict=True
    ):
        assert reason.startswith(f"{method}: training has 1 environment; expected 2 or more")


def test_an_address_without_ray_is_refused(screen: Screen, tmp_path: Path, capsys: Said) -> None:
    said = mistake(write(tmp_path, screen), capsys, "--address", "auto")
    assert "add --executor ray" in said


def test_an_address_where_no_cluster_answers_is_one_line(
    screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    ray = ("--executor", "ray", "--address", "127.0.0.1:9")
    said = mistake(write(tmp_path, screen), capsys, *ray)
    assert "--address 127.0.0.1:9: no Ray cluster answers" in said


def test_without_ray_the_extra_is_named(
    screen: Screen, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = mistake(write(tmp_path, screen), capsys, "--executor", "ray")
    assert "Ray is not installed; pip install 'deconfound[ray]'" in said


def test_a_sweep_on_ray_is_that_of_this_machine(
    screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    """Ray starts here: two runs, one of which fails, and the table of the other."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    data = {"environment": ["series"], "val_fraction": 0.2}
    entries = {"erm": None, "dann": None}
    file = write(tmp_path, screen, methods=entries, data=data, folds=["series=S1"])
    assert "1 run failed; " in mistake(file, capsys, "--executor", "ray", "--workers", "1")
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert table.loc["erm", "setting"] == "as given"
    (failed,) = pd.read_csv(tmp_path / "out" / "failures.csv")["run"]
    assert failed.startswith("dann-")
    assert "1 of them done before" in _again(file, capsys)


def _again(file: Path, said: Said) -> str:
    """What the same sweep without the run that fails says: nothing is left to do."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values["methods"] = {"erm": None}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    said.readouterr()
    cli.main(["compare", str(file), "--out", str(file.parent / "out"), "--executor", "ray"])
    return said.readouterr().out
