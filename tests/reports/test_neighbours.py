"""Neighbours across environments: who they are, the share right, its chance, and the pictures."""

import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.reports import neighbours
from deconfound.reports.cells import read_cells
from deconfound.reports.neighbours import MOST_SHOWN, Drawn, nearest_cells, neighbours_elsewhere
from deconfound.reports.sources import find_sources

HOSTILE = '"><img src=x onerror=alert(1)>'


def made(study: Any, seed: int = 0) -> str:
    sources = find_sources([study.root], 10, seed)
    return str(nearest_cells(read_cells(sources.samples), sources.runs, seed))


def shares(page: str) -> dict[str, tuple[float, float]]:
    """Percent right and by chance, by method."""
    found = re.findall(
        r"<tr><th>([^<]*)</th><td>.*?>([\d.]+) %</td><td class=\"number\">([\d.]+) %",
        page,
        re.DOTALL,
    )
    return {name: (float(right), float(chance)) for name, right, chance in found}


def study_of(make_study: Callable[..., Any], cells: int = 60) -> Any:
    """Three plates, of labels a (2 of 3 cells), b and, on P3 alone, c."""
    number = np.arange(cells)
    plate = np.array(["P1", "P2", "P3"])[number % 3]
    label = np.where(number % 9 < 6, "a", "b")
    label[(plate == "P3") & (number % 9 == 5)] = "c"
    table = pd.DataFrame({"drug": label, "plate": plate, "well": "A01"})
    images = np.zeros((cells, 1, 6, 6), np.uint8)
    images[:] = number[:, None, None, None] * 4
    return make_study(table, images)


def test_neighbours_are_the_nearest_of_other_environments() -> None:
    stream = np.random.default_rng(0)
    block = stream.normal(size=(80, 3)).astype(np.float32)
    environment = stream.integers(0, 4, 80)
    drawn = Drawn(np.array([7, 3, 60]), np.arange(0, 80, 2), np.zeros(80, np.int64), environment)
    near = neighbours_elsewhere(block, drawn)
    for cell, found in zip(drawn.cells, near, strict=True):
        others = [row for row in drawn.reference if environment[row] != environment[cell]]
        ranked = sorted(others, key=lambda row: float(np.linalg.norm(block[row] - block[cell])))
        assert found.tolist() == ranked[:5]


def test_fewer_others_than_five_are_all_neighbours() -> None:
    environment = np.array([0, 0, 0, 1, 1])
    drawn = Drawn(np.array([0]), np.arange(5), np.zeros(5, np.int64), environment)
    near = neighbours_elsewhere(np.arange(5, dtype=np.float32)[:, None], drawn)
    assert near.tolist() == [[3, 4, -1, -1, -1]]


def test_shares_are_of_all_held_out_cells_and_stand_beside_chance(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study)
    label, plate = study.table["drug"], study.table["plate"]
    test = (plate == "P1").to_numpy()
    perfect = (pd.Categorical(label).codes * 10.0)[:, None].astype(np.float32)
    by_plate = (pd.Categorical(plate).codes * 10.0)[:, None]
    by_plate = (by_plate + np.random.default_rng(0).normal(size=(len(label), 1))).astype(np.float32)
    study.add("erm", test, [None] * len(label), block=by_plate)
    study.add("scbd", test, [None] * len(label), block=perfect)
    found = shares(made(study))
    assert found["scbd"][0] == 100.0
    assert found["erm"][0] < 90
    chance = np.mean([(label[plate != "P1"] == own).mean() for own in label[test]])
    assert found["scbd"][1] == found["erm"][1] == round(100 * chance, 1)


def test_a_frame_a_mark_and_a_name_tell_right_from_wrong(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study)
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, [None] * len(test))
    page = made(study)
    body = page[page.index('id="neighbour-cells"') :]
    rows = body[body.index("<tbody>") :].split("<tr>")[1:]
    assert len(rows) == MOST_SHOWN
    queries = []
    for row in rows:
        head, _, near = row.partition("</th>")
        (query,) = map(int, re.findall(r'aria-label="[^"]*row (\d+)"', head))
        queries.append(study.table.loc[query, "drug"])
        assert test[query]
        assert len(re.findall("<figure", near)) == 5
        for kind, number, caption in re.findall(
            r'<figure class="(\w+)">.*?aria-label="[^"]*row (\d+)".*?<figcaption[^>]*>(.*?)<', near
        ):
            own = study.table.loc[int(number)]
            assert own["plate"] != "P1"
            right = own["drug"] == queries[-1]
            assert kind == ("hit" if right else "miss")
            assert caption == ("✓" if right else f"✗ {own['drug']}")
    assert sorted(queries) == queries
    assert set(queries) == {"a", "b"}
    assert queries.count("b") == 4
    assert page.count("data:image/webp") == 1


def test_few_cells_are_drawn_by_the_seed(
    make_study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(make_study)
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, [None] * len(test))
    monkeypatch.setattr(neighbours, "MOST_CELLS", 6)
    monkeypatch.setattr(neighbours, "MOST_REFERENCE", 40)
    assert made(study) == made(study)
    assert made(study) != made(study, seed=1)
    assert "6 held-out cells" in made(study)
    assert "among 40 cells of all parts" in made(study)


def test_methods_with_other_folds_or_broken_embeddings_are_named(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study)
    plate = study.table["plate"]
    nothing = [None] * len(plate)
    broken = np.full((len(plate), 2), np.nan, np.float32)
    for method in ("erm", "scbd"):
        study.add(method, (plate == "P1").to_numpy(), nothing)
    study.add("dann", (plate == "P1").to_numpy(), nothing, block=broken)
    study.add("coral", (plate == "P2").to_numpy(), nothing, fold="plate=P2")
    page = made(study)
    assert list(shares(page)) == ["erm", "scbd"]
    assert re.search(r"Not shown: dann \(.*NaN.*\), coral \(other folds", page)


def test_without_the_screen_the_shares_stand_alone(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study)
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, [None] * len(test))
    shutil.rmtree(study.root / "screen")
    page = made(study)
    assert list(shares(page)) == ["erm"]
    assert "No pictures: the screen is no longer at" in page
    assert "<img" not in page
    assert "data:image" not in page


def test_one_environment_has_no_neighbours_elsewhere(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study)
    table = study.table.assign(plate="P1")
    (study.root / "single").mkdir()
    single = type(study)(study.root / "single", table, np.zeros((60, 1, 2, 2), np.uint8))
    single.add("erm", np.arange(60) < 10, [None] * 60, fold="iid")
    assert made(single) == ""


def test_hostile_names_stay_text(make_study: Callable[..., Any]) -> None:
    table = pd.DataFrame({"drug": [HOSTILE, "b"] * 6, "plate": [HOSTILE] * 6 + ["P2"] * 6})
    study = make_study(table.assign(well="A01"), np.zeros((12, 1, 2, 2), np.uint8))
    study.add("erm", (table["plate"] == "P2").to_numpy(), [None] * 12)
    page = made(study)
    assert "<img" not in page
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in page
