"""What `measure` prints of its scores: few lines, whole names, chance beside every score."""

import json
import math
from typing import Any

import pandas as pd
import pytest

from deconfound.cli.printing import print_lines, print_table
from deconfound.cli.score_lines import CAPTION, MOST, score_lines
from deconfound.evaluation.scores import COLUMNS

Said = pytest.CaptureFixture[str]
NAME = "scbd-listing-with-a-name-that-is-longer-than-any-terminal-is-wide+symphony+knn"


def row(metric: str, part: str, value: float, **about: Any) -> dict[str, Any]:
    seed = about.get("seed", 0)
    config = json.dumps({"method": "m", "seed": seed, "alpha": about.pop("alpha", 1)})
    known = {
        "method": "m", "fold": "plate=P1", "seed": seed, "representation": "prediction",
        "metric": metric, "part": part, "value": value, "n": 9, "note": "", "config": config,
    }  # fmt: skip
    return known | about


def run(**about: Any) -> list[dict[str, Any]]:
    """The scores of one embeddings file with a content block."""
    rows = [
        row(f"macro_f1{end}", part, value, **about)
        for part, values in (("test", (0.6, 0.25)), ("id_test", (0.8, 0.26)), ("val", (0.9, 0.2)))
        for end, value in zip(("", "_chance"), values, strict=True)
    ]
    for block, leak in (("content", 0.5), ("representation", 0.9)):
        of_block = about | {"representation": block}
        rows += [
            row("probe_environment_macro_f1", "id_test", leak, **of_block),
            row("probe_environment_macro_f1_chance", "id_test", 0.33, **of_block),
            row("probe_label_macro_f1", "test", 0.4, **of_block),
            row("lisi_label", "id_test", 2.0, **of_block),
        ]
    return rows


def framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_method_and_fold_are_one_line_beside_chance() -> None:
    found = score_lines(framed(run()))
    assert found.caption == CAPTION
    assert found.columns == ["method", "fold", "held out", "in distribution", "leakage"]
    shown = ["m", "plate=P1", "0.600 (0.250)", "0.800 (0.260)", "0.500 (0.330)"]
    assert found.rows == [shown]
    assert found.below == []


def test_seeds_are_averaged_and_counted_and_settings_are_not() -> None:
    """Two values of an option are two lines, though both have one name."""
    seeds = [*run(), *run(seed=1)]
    seeds[-1] = seeds[0] | {"seed": 1, "value": 0.7}
    other = [one | {"value": 0.1} for one in run(alpha=8)]
    found = score_lines(framed([*seeds, *other]))
    assert found.columns[2] == "seeds"
    assert [line[2] for line in found.rows] == ["2", "1"]
    assert found.rows[0][3] == "0.633 (0.250)"
    assert found.rows[1][3] == "0.100 (0.100)"


def test_without_predictions_a_probe_reads_the_label_and_an_iid_fold_holds_nothing_out() -> None:
    rows = [one for one in run(fold="iid") if one["representation"] != "prediction"]
    found = score_lines(framed(rows))
    assert found.columns == ["method", "fold", "in distribution", "leakage"]
    assert found.rows == [["m", "iid", "0.400", "0.500 (0.330)"]]
    undefined = [one | {"value": math.nan, "note": "one class"} for one in rows]
    found = score_lines(framed(undefined))
    assert found.rows == [["m", "iid", "–", "–"]]
    assert found.below == ["note: one class"]


def test_notes_come_once_alarms_first_and_those_of_other_scores_not_at_all() -> None:
    rows = run()
    rows[0]["note"] = "3 of 4 test classes are in training; 6 rows are not scored"
    rows[2]["note"] = "6 rows are not scored"
    rows[-1]["note"] = "of a score that is not shown"
    rows[-2]["note"] = "the probe had not converged after 5000 iterations"
    assert score_lines(framed(rows)).below == [
        "note: the probe had not converged after 5000 iterations",
        "note: 3 of 4 test classes are in training",
        "note: 6 rows are not scored",
    ]


@pytest.mark.parametrize("folds", [1, 7, 8, 30])
@pytest.mark.parametrize("notes", [0, 1, 4, 20])
def test_there_are_never_more_than_a_dozen_lines(folds: int, notes: int) -> None:
    rows = []
    for fold in range(folds):
        found = run(fold=f"plate=P{fold}")
        found[0]["note"] = "; ".join(f"{number} rows" for number in range(notes))
        rows += found
    pooled = "plate (pooled over 30 folds)"
    rows.append(row("macro_f1", "test", 0.5, fold=pooled))
    shown = score_lines(framed(rows))
    lines = 1 + 1 + len(shown.rows) + len(shown.below) + 1  # caption, header, …, the file
    assert lines <= MOST
    assert any(line[1] == pooled for line in shown.rows)
    left = folds + 1 - len(shown.rows)
    assert (f"and {left} more methods and folds" in shown.below) == (left > 0)
    told = sum(line.startswith("note: ") for line in shown.below)
    assert (f"and {notes - told} more notes" in shown.below) == (told < notes)
    assert told >= min(notes, 2)


def test_other_scores_have_columns_of_their_own() -> None:
    rows = [
        row("corum_average_precision", "all", 0.31, representation="content"),
        row("corum_prevalence", "all", 0.1, representation="content"),
        row("imputation_error", "test", 0.5, representation="image", method="ist"),
        row("imputation_error", "test", 0.9, representation="channel DNA", method="ist"),
        row("retrieval_activity_map", "all", 0.7, representation="content", method="w"),
    ]
    found = score_lines(framed(rows))
    assert found.caption == ""
    assert found.columns == [
        "method", "fold", "precision (chance)", "activity: mAP", "error, held out"
    ]  # fmt: skip
    assert found.rows == [
        ["m", "plate=P1", "0.310 (0.100)", "–", "–"],
        ["ist", "plate=P1", "–", "–", "0.500"],
        ["w", "plate=P1", "–", "0.700", "–"],
    ]


def test_how_well_the_source_is_read_is_shown_beside_chance() -> None:
    rows = [row("imputation_error", "test", 0.5, representation="image", method="ist")]
    for method, value in (("ist", 0.6), ("rendered exactly", 0.3)):
        for name, found in (("environment", value), ("level", value + 0.2)):
            metric = f"imputation_source_{name}"
            about: dict[str, Any] = {"representation": "image", "method": method}
            rows += [
                row(metric, "id_test", found, **about),
                row(f"{metric}_chance", "id_test", 0.25, **about),
            ]
    shown = score_lines(framed(rows))
    assert shown.columns[2:] == [
        "error, held out", "source environment (chance)", "source level (chance)"
    ]  # fmt: skip
    assert shown.rows == [
        ["ist", "plate=P1", "0.500", "0.600 (0.250)", "0.800 (0.250)"],
        ["rendered exactly", "plate=P1", "–", "0.300 (0.250)", "0.500 (0.250)"],
    ]


@pytest.mark.parametrize("width", ["20", "80", "300"])
def test_names_are_whole_at_any_width(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    print_lines(["method", "fold"], [[NAME, "plate (pooled over 3 folds)"], ["m", "iid"]])
    line = capsys.readouterr().out.splitlines()
    assert len(line) == 3
    assert line[1] == f"{NAME}  plate (pooled over 3 folds)"
    assert line[2] == f"m{' ' * (len(NAME) + 1)}iid"
    for plain in (False, True):
        print_table(["method", "what it is"], [[NAME, "some words " * 20]], plain)
        said = capsys.readouterr().out
        assert NAME in said
        assert "…" not in said
        assert said.count("words") == 20


def test_control_characters_stay_harmless(capsys: Said) -> None:
    print_lines(["a"], [["x\x1b[31m\ny"]])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2
