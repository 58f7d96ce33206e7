"""Names out of a table reach no terminal and no spreadsheet as commands."""

import contextlib
import csv
import io
import shlex
import unicodedata
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deconfound import cli
from deconfound.data.screens.export import export
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.experiments.running import executors
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.runtime.escaping import for_spreadsheet, for_terminal, from_spreadsheet
from deconfound.runtime.progress import Progress

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b1m\u202eevil\u2066\nforged\r\x00\udcff"
FORMULAS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\ry", "'=1", "''-5", "'", "-5", "+1.5e3"]
texts = st.text(st.sampled_from("=+-@'\t\r5.ea"), max_size=5) | st.text(max_size=5)


def harmless(said: str) -> bool:
    """Whether a terminal prints every letter as itself, line by line."""
    kinds = {unicodedata.category(letter) for letter in said.replace("\n", "")}
    return not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(text=st.text(st.characters()))
def test_any_text_is_shown_in_one_line_of_printed_letters(text: str) -> None:
    shown = for_terminal(text)
    assert harmless(shown)
    assert len(shown.splitlines()) <= 1
    assert shown == text or not text.isprintable()


def test_names_of_the_field_are_shown_as_they_are() -> None:
    for name in ("5 µM taxol", "β-catenin", "P1/A01", "对照", "[bold]"):
        assert for_terminal(name) == name
    assert for_terminal("\x1b[31m\u202e") == r"\x1b[31m\u202e"


def hostile(path: Path, text: str = ESCAPES) -> Screen:
    """A screen whose names, labels and plates hold `text`; surrogates are no text of a table."""
    text = text.replace("\udcff", "")
    table = pd.DataFrame({f"drug{text}": [f"a{text}", "b"] * 6, f"plate{text}": [*"ppqq"] * 3})
    drug, plate = table.columns
    roles = Roles(label=drug, environment=(plate,), levels=(plate,))
    with ScreenWriter(path, f"screen{text}", (f"DNA{text}",), roles, {}) as writer:
        writer.append(np.random.default_rng(0).integers(0, 255, (12, 1, 24, 24)).astype(np.uint8))
        writer.finish(table)
    return open_screen(path)


@pytest.mark.parametrize(
    "words",
    [
        ["describe", "SCREEN", "--out", "OUT"],
        ["describe", "SCREEN", "--label", ESCAPES],
        ["fit", "erm", "SCREEN", "--fold", ESCAPES, "--out", "OUT"],
        ["fit", "erm", "SCREEN", "--out", "OUT", "--batch-size", "2", "--steps", "1", "--device",
         "cpu", "--precision", "32", "--threads", "1", "--val-fraction", "0.3"],
        ["fit", ESCAPES, "SCREEN"],
        [ESCAPES],
        ["embed", f"nowhere{ESCAPES}", "SCREEN", "--out", "e.h5ad"],
        ["embed", f"nowhere{ESCAPES}", "--debug", "SCREEN", "--out", "e.h5ad"],
        ["ingest", f"nowhere{ESCAPES}.csv", "--images-root", "SCREEN", "--out", "OUT"],
        ["export", "SCREEN", "--out", "OUT"],
    ],
    ids=lambda words: "-".join(words[:2]).encode("ascii", "replace").decode()[:20],
)  # fmt: skip
def test_no_verb_sends_a_name_to_the_terminal_as_a_command(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SCREEN": str(hostile(tmp_path / "s").path), "OUT": str(tmp_path / "out\x1b[31m{0}")}
    try:
        cli.main([places.get(word, word) for word in words])
    except SystemExit as stop:
        assert stop.code == 2
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert harmless(captured.out)
    assert harmless(captured.err)


def test_scores_are_printed_without_commands(
    finished_runs: Callable[[str], Path], screen: Screen, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from deconfound.embeddings.embed import embed
    from deconfound.embeddings.file import write_embeddings

    named = tmp_path / "n\x1b[31m.h5ad"
    found = embed(finished_runs("erm"), screen.path, tmp_path / "e.h5ad", quiet=True, device="cpu")
    about = found.about | {"method": f"erm{ESCAPES[:-1]}"}
    write_embeddings(named, type(found)(found.table, found.representations, about))
    capsys.readouterr()
    cli.main(["measure", str(named), "--out", str(tmp_path / "s.parquet")])
    captured = capsys.readouterr()
    assert "erm" in captured.out
    assert harmless(captured.out + captured.err)


@pytest.mark.parametrize("name", [ESCAPES, "{0}", "{task.x}", "[bold]a[/nothing]", "100%"])
def test_any_name_and_note_can_stand_beside_a_bar(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(name, 2, "rows") as progress:
        progress.update(1, name)
        progress.update(1)
    said = capsys.readouterr().err
    assert harmless(said)
    assert for_terminal(name)[:8] in said


@given(cells=st.lists(texts | st.none(), min_size=1, max_size=4), name=texts)
def test_marks_keep_formulas_text_and_come_off_again(cells: list[str | None], name: str) -> None:
    table = pd.DataFrame({name: pd.Series(cells, dtype=object), "number": -1.5})
    marked = for_spreadsheet(table)
    for text in [*marked.columns, *marked.iloc[:, 0].dropna()]:
        assert text[:1] not in ("=", "@", "\t", "\r") or text[:1] == ""
        assert text[:1] not in ("+", "-") or float(text) is not None
    pd.testing.assert_frame_equal(from_spreadsheet(marked), table)
    assert (marked["number"] == -1.5).all()


def test_numbers_that_are_text_stay_numbers() -> None:
    marked = for_spreadsheet(pd.DataFrame({"dose": ["-5", "+1.5e3", "-.5", "-", "-5x", "-inf"]}))
    assert marked["dose"].tolist() == ["-5", "+1.5e3", "-.5", "'-", "'-5x", "'-inf"]


def cells_of(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]


def test_tables_of_a_description_compute_nothing(tmp_path: Path) -> None:
    cli.main(["describe", str(hostile(tmp_path / "s", "x").path), "--quiet",
              "--label", "drugx"])  # fmt: skip
    table = pd.DataFrame(
        {"drug": ["=1+1", "@b\x1b[2J\u202e"] * 6, "=plate": ["-p", "-p", "+q", "+q"] * 3}
    )
    roles = Roles(label="drug", environment=("=plate",), levels=("=plate",))
    with ScreenWriter(tmp_path / "t", "t", ("=DNA",), roles, {}) as writer:
        writer.append(np.zeros((12, 1, 8, 8), np.uint8))
        writer.finish(table)
    cli.main(["describe", str(tmp_path / "t"), "--out", str(tmp_path / "out"), "--quiet"])
    for name in ("occupancy", "statistics", "folds"):
        cells = cells_of((tmp_path / "out" / f"{name}.csv").read_text())
        assert any(cell.startswith("'") for cell in cells)
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")]
        assert all(cell.isprintable() for cell in cells)


def test_an_exported_table_computes_nothing_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drugs = [*FORMULAS, "plain"]
    table = pd.DataFrame(
        {"=drug": drugs, "plate": ["p", "q"] * 6, "note": [*drugs[1:], None], "dose": -1.5}
    )
    roles = Roles(label="=drug", environment=("plate",), levels=("plate",))
    with ScreenWriter(tmp_path / "s", "tiny", ("DNA",), roles, {}) as writer:
        writer.append(np.zeros((12, 1, 8, 8), np.uint8))
        writer.finish(table)
    command = export(tmp_path / "s", tmp_path / "out", quiet=True)
    with (tmp_path / "out" / "table.csv").open(newline="") as stream:
        cells = cells_of(stream.read())
    assert "'=drug" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "\r")]
    assert {cell for cell in cells if cell[:1] in ("+", "-")} == {"-5", "+1.5e3", "-1.5"}
    monkeypatch.chdir(tmp_path)
    cli.main([*shlex.split(command)[1:], "--quiet"])
    back = open_screen(tmp_path / "tiny-again")
    assert back.roles == roles
    pd.testing.assert_frame_equal(
        back.table[["=drug", "plate", "note"]].astype("string"),
        table[["=drug", "plate", "note"]].astype("string"),
    )


def test_tables_of_a_comparison_compute_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every CSV file of levels, a search and a trade-off, with runs that fail and runs that end."""

    def run_here(orders: Sequence[Order], _: int) -> Generator[Outcome, None, None]:
        runner = Runner()
        yield from map(runner.run, orders)

    monkeypatch.setattr(executors, "run_local", run_here)
    table = pd.DataFrame({"drug": ["a", "b"] * 24, "@plate": [*"ppqqrr"] * 8})
    roles = Roles(label="drug", environment=("@plate",), levels=("@plate",))
    with ScreenWriter(tmp_path / "s", "t", ("DNA",), roles, {}) as writer:
        writer.append(np.random.default_rng(0).integers(0, 255, (48, 1, 16, 16)).astype(np.uint8))
        writer.finish(table)
    few = {"steps": 2, "batch_size": 8, "device": "cpu", "precision": "32", "threads": 1}
    plan = {
        "screens": [str(tmp_path / "s")], "folds": ["@plate=p"], "data": {"val_fraction": 0.2},
        "training": few,
        "methods": {"erm": {"grid": {"learning_rate": [0.001, 1e30]}}},
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    seen = set()
    for view in ("search", "levels", "trade-off"):
        out = tmp_path / view
        with contextlib.suppress(SystemExit):
            cli.main(["compare", str(tmp_path / "plan.yaml"), "--out", str(out), "--quiet",
                      *(["--view", view] if view != "search" else [])])  # fmt: skip
        for file in out.rglob("*.csv"):
            cells = cells_of(file.read_text(encoding="utf-8"))
            numbers = {cell for cell in cells if cell[:1] in ("+", "-")}
            assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "\r")], file
            assert all(map(np.isfinite, map(float, numbers))), file
            seen |= {file.name for cell in cells if cell.startswith("'@plate")}
    assert seen == {"table.csv", "points.csv", "failures.csv"}


def test_debug_still_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["measur", "--debug"])
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert UserError.__name__ in said
    assert len(said.splitlines()) > 3
