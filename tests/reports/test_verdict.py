"""verdict.json at the head of a report, and what is said without one."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deconfound.errors import UserError
from deconfound.reports.headline import headlines
from deconfound.reports.leaderboard import of_scores, of_verdict
from deconfound.reports.report import report
from deconfound.reports.sources import SCORE_COLUMNS, find_sources
from deconfound.reports.tables import with_levels
from deconfound.reports.verdict import read_verdict


def summed(mean: float | None, sd: float | None = 0.03, chance: float | None = 0.1) -> Any:
    return {"mean": mean, "sd": sd, "n": 6, "chance": chance}


def of_method(held_out: float, readable: float, difference: Any, **more: Any) -> dict[str, Any]:
    return {
        "held_out": summed(held_out), "in_distribution": summed(0.8),
        "environment_readable": summed(readable), "biology_kept": None, "chosen_by_score": None,
        "difference": difference, "saw_held_out": False, **more,
    }  # fmt: skip


def verdict(**more: Any) -> dict[str, Any]:
    gained = {"mean": 0.12, "low": 0.05, "high": 0.19, "p": 0.004}
    noise = {"mean": 0.01, "low": -0.03, "high": 0.05, "p": 0.6}
    methods = {
        "erm": of_method(0.5, 0.9, None),
        "recipe": of_method(0.62, 0.4, gained, saw_held_out=True),
        "scbd": of_method(0.51, 0.41, noise),
    }
    return {
        "format": 1, "source": "cells.csv", "label": "Metadata_Compound",
        "environment": "Metadata_Batch", "hold_out": ["Metadata_Batch"], "verdict": "helps",
        "sentence": "The recipe helps.", "why": "It is above ERM in all batches.",
        "chosen_by": "macro-F1 on training batches left out in turn", "recommended": "recipe",
        "baseline": "erm", "difference": {**gained, "groups": 4, "seeds": 3}, "methods": methods,
        **more,
    }  # fmt: skip


def written(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "verdict.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_the_verdict_stands_first_with_its_number_reason_and_choice(tmp_path: Path) -> None:
    study = written(tmp_path / "study", verdict())
    report([study], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    first = page[page.index("<main>") : page.index("</section>")]
    said = ["helps", "The recipe helps.", "+0.120", "It is above ERM", "left out in turn"]
    places = [first.index(text) for text in said]
    assert places == sorted(places)
    assert re.search(r"what was chosen − erm, 95 % interval \+0.050 … \+0.190, p = 0.004", first)
    assert "over 4 groups and 3 seeds" in first


def test_the_leaderboard_marks_the_best_and_what_is_noise(tmp_path: Path) -> None:
    found = read_verdict(written(tmp_path / "study", verdict()) / "verdict.json")
    board = of_verdict(found.verdict)
    assert [column.title for column in board.columns] == [
        "held out", "in distribution", "environment readable",
    ]  # fmt: skip
    assert [row.method for row in board.rows] == ["recipe", "scbd", "erm"]
    recipe, scbd, erm = board.rows
    assert recipe.badges == ["recommended", "saw held-out images"]
    assert erm.badges == ["baseline"]
    assert [cell.best for cell in recipe.cells] == [True, True, True]
    assert [cell.noise for cell in scbd.cells] == [False, False, True]
    assert not scbd.cells[0].best
    assert (recipe.gap.text, recipe.gap.state) == ("+0.120", "above")
    assert scbd.gap.state == "noise"
    assert erm.gap.state == ""
    assert recipe.cells[0].text == "0.620 ± 0.030"
    assert recipe.cells[0].aside == "0.10"


def test_numbers_may_be_null(tmp_path: Path) -> None:
    nothing = {"mean": None, "low": None, "high": None, "p": None}
    values = verdict(verdict="cannot be told", difference={**nothing, "groups": 1, "seeds": 1})
    values["methods"]["scbd"] = of_method(0.5, math.nan, nothing)
    values["methods"]["scbd"]["held_out"] = summed(None, None, None)
    study = written(tmp_path / "study", values)
    report([study], tmp_path / "page.html")
    (headline,) = headlines(find_sources([study], 10, 0).verdicts, pd.DataFrame())
    assert (headline.state, headline.number, headline.interval) == ("cannot be told", "", None)
    written(study, verdict(verdict="cannot be told", difference=None))
    (without,) = headlines(find_sources([study], 10, 0).verdicts, pd.DataFrame())
    assert (without.number, without.about, without.interval) == ("", "", None)
    assert headline.board.rows[-1].method == "scbd"
    assert headline.board.rows[-1].cells[0].text == "–"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2; this release reads format 1"),
        ({"sentence": None}, "sentence: Input should be a valid string"),
        ({"verdict": "perhaps"}, "verdict: Input should be 'helps'"),
        ({"methods": {"erm": {}}}, "methods.erm.held_out: Field required"),
    ],
)
def test_a_verdict_that_cannot_be_read(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = written(tmp_path / "study", verdict(**change)) / "verdict.json"
    with pytest.raises(UserError, match=r"verdict\.json") as caught:
        read_verdict(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    rows = [score("erm", 0.5, 1, 0)]
    framed(rows).drop(columns="level").to_parquet(tmp_path / "study" / "scores.parquet")
    assert said in find_sources([tmp_path / "study"], 10, 0).left_out[0]


def score(method: str, value: float, fold: int, seed: int) -> dict[str, Any]:
    values = (method, f"plate=P{fold}", seed, "prediction", "macro_f1", "test", value, 100, "")
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return with_levels(pd.DataFrame(rows, columns=list(SCORE_COLUMNS)))


def grid(differences: dict[str, float], folds: int, seeds: int) -> pd.DataFrame:
    """ERM at 0.5 + 0.01 · fold, and others above it by a difference and a wobble of 0.001."""
    return framed(
        [
            score(method, 0.5 + 0.01 * fold + difference + 0.001 * (seed % 2), fold, seed)
            for method, difference in {"erm": 0.0, **differences}.items()
            for fold in range(folds)
            for seed in range(seeds)
        ]
    )


def test_without_a_verdict_scores_say_what_they_can() -> None:
    (found,) = headlines([], grid({"scbd": 0.1, "dann": -0.1}, 3, 2))
    assert (found.state, found.number) == ("helps", "+0.100")
    assert found.sentence == "scbd scores above erm on held-out plate."
    assert "No method was chosen without looking at these scores" in found.chosen_by
    (found,) = headlines([], grid({"scbd": -0.2, "dann": -0.1}, 3, 2))
    assert (found.state, found.sentence) == (
        "harms", "Every method scores below erm on held-out plate.",
    )  # fmt: skip
    (found,) = headlines([], grid({"scbd": 0.1}, 2, 1))
    assert (found.state, found.number) == ("cannot be told", "+0.100")
    assert found.why == (
        "An interval takes 3 held-out groups and 2 seeds; there are 2 groups and 1 seed."
    )
    (found,) = headlines([], grid({}, 2, 1))
    assert found.sentence.endswith("cannot be told: there is nothing to compare.")
    assert found.number == "0.505"
    only_iid = grid({"scbd": 0.1}, 1, 1).assign(fold="iid", level="iid")
    assert headlines([], only_iid) == []


def test_noise_of_scores_is_an_interval_that_holds_0() -> None:
    rows = grid({"scbd": 0.0}, 4, 2)
    up = (rows["method"] == "scbd") & rows["fold"].isin(["plate=P0", "plate=P1"])
    rows.loc[up, "value"] += 0.05
    down = (rows["method"] == "scbd") & ~up
    rows.loc[down, "value"] -= 0.04
    ((board, _),) = of_scores(rows)
    gap = next(row.gap for row in board.rows if row.method == "scbd")
    assert gap.state == "noise"
    assert (gap.text, gap.value) == ("+0.005", pytest.approx(0.005))
    (found,) = headlines([], rows)
    assert found.state == "no difference"
    assert found.interval is not None
    mean, low, high = found.interval
    assert low < 0 < mean < high
