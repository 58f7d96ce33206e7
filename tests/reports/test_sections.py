"""Sections of a report: which there are, and where they stand in the page."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deconfound.reports.cells import read_cells
from deconfound.reports.report import report
from deconfound.reports.sections import sections
from deconfound.reports.sources import find_sources


def test_images_stand_before_the_scores_and_the_others_after(
    make_study: Callable[..., Any], tmp_path: Path
) -> None:
    table = pd.DataFrame({"drug": ["a", "b", "a"], "plate": ["P1", "P2", "P2"], "well": "A01"})
    study = make_study(table, np.zeros((3, 1, 2, 2), np.uint8))
    study.add("erm", np.array([True, False, False]), ["a", "b", "a"])
    before, after = sections(find_sources([study.root], 10, 0), 0)
    assert [one.place for one in before] == ["images"]
    assert [one.place for one in after] == ["labels", "plates", "neighbours"]
    report([study.root], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    places = [page.index(f'<section id="{one.place}">') for one in (*before, *after)]
    assert places == sorted(places)
    for one in (*before, *after):
        assert f'<a href="#{one.place}">{one.title}</a>' in page
        assert str(one.body) in page


def test_rows_are_read_once_and_not_of_runs_that_only_choose(
    make_study: Callable[..., Any],
) -> None:
    table = pd.DataFrame({"drug": list("abab"), "plate": ["P1", "P1", "P2", "P2"], "well": ""})
    study = make_study(table, np.zeros((4, 1, 2, 2), np.uint8))
    study.add("erm", np.array([True, True, False, False]), list("abab"))
    (sample,) = find_sources([study.root], 10, 0).samples
    data = sample.about["config"]["data"] | {"without": "plate=P3"}
    nested = sample.about | {"config": sample.about["config"] | {"data": data}}
    genes = sample.about | {"aggregated": "gene"}
    others = [replace(sample, name="other", about=about) for about in (nested, genes)]
    assert [one.name for one in read_cells([sample, sample, *others])] == ["erm"]


def test_profiles_without_predictions_and_wells_have_neighbours_alone(
    make_study: Callable[..., Any],
) -> None:
    table = pd.DataFrame({"drug": list("abab"), "plate": ["P1", "P1", "P2", "P2"], "well": ""})
    study = make_study(table, np.eye(4, dtype=np.float32), ("f1", "f2", "f3", "f4"))
    study.add("erm", np.array([True, True, False, False]), [None] * 4)
    before, after = sections(find_sources([study.root], 10, 0), 0)
    assert before == []
    assert [one.place for one in after] == ["neighbours"]
    assert "No pictures: the screen holds profiles" in after[0].body
