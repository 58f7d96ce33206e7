"""Plate layouts of a report: wells in their places, shares, labels and components."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.data.tables.table import Roles
from deconfound.reports import plates
from deconfound.reports.cells import read_cells
from deconfound.reports.plates import plate_layouts, row_name
from deconfound.reports.sources import find_sources

HOSTILE = "</title><script>alert(1)</script>"
ROLES = Roles(label="drug", environment=("plate",), levels=("plate",), well="well")


def study_of(
    make_study: Callable[..., Any], rows: list[tuple[str, str, str]], roles: Roles = ROLES
) -> Any:
    table = pd.DataFrame(rows, columns=["drug", "plate", "well"])
    return make_study(table, np.zeros((len(table), 1, 2, 2), np.uint8), roles=roles)


def made(study: Any) -> str:
    return str(plate_layouts(read_cells(find_sources([study.root], 10, 0).samples)))


def maps(page: str) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Of each map the wells: class, what is said of it and its symbol, by its place "x y"."""
    found: dict[str, dict[str, tuple[str, str, str]]] = {}
    for caption, drawn in re.findall(
        r'<figure class="plate"><figcaption>(.*?)</figcaption>(.*?)</figure>', page, re.DOTALL
    ):
        wells = re.findall(
            r'<g class="(\w+)"><title>(.*?)</title><path d="M(\d+ \d+)h[^>]*>'
            r"(?:<text[^>]*>(.*?)<)?",
            drawn,
        )
        assert caption not in found
        found[caption] = {place: (colour, said, text) for colour, said, place, text in wells}
    return found


def test_wells_stand_in_their_places_with_share_label_and_component(
    make_study: Callable[..., Any],
) -> None:
    rows = [("a", "P1", "a1"), ("a", "P1", "a1"), ("b", "P1", "B12"), ("b", "P1", "B12")]
    rows += [("a", "P2", "a1"), ("b", "P2", "A02")]
    study = study_of(make_study, rows)
    test = (study.table["plate"] == "P1").to_numpy()
    # The leading component is the first column; its sd over all six rows is 2.
    block = np.array([[2, 0], [2, 0], [-2, 0], [-2, 0], [2, 0], [-2, 0]], np.float32)
    study.add("erm", test, ["a", "b", "b", "b", "a", "b"], block=block)
    page = made(study)
    assert 'viewBox="-1.6 -1.4 13.8 9.6"' in page
    found = maps(page)
    assert found["label"] == {"0 0": ("c0", "A01: a", "a"), "11 1": ("c1", "B12: b", "b")}
    assert found["erm: share right"] == {
        "0 0": ("s5", "A01: 50% of 2", ""),
        "11 1": ("s10", "B12: 100% of 2", ""),
    }
    given = found["erm: label given most often"]
    assert given == {"0 0": ("c0", "A01: a", "a"), "11 1": ("c1", "B12: b", "b")}
    assert found["erm: leading component"] == {
        "0 0": ("d8", "A01: +1.00 sd", ""),
        "11 1": ("d2", "B12: -1.00 sd", ""),
    }
    assert "<h3>P1</h3>" in page
    assert "<h3>P2</h3>" not in page


def test_one_scale_and_one_symbol_a_label_for_all_methods_and_plates(
    make_study: Callable[..., Any],
) -> None:
    names = [f"d{n}" for n in range(12)]
    rows = [(name, plate, "C03") for plate in ("P1", "P2", "P3") for name in names[:1]]
    rows += [(name, "P1", f"A{n + 1:02d}") for n, name in enumerate(names)]
    study = study_of(make_study, rows)
    label = study.table["drug"].tolist()
    for method in ("erm", "scbd"):
        for plate in ("P1", "P2"):
            test = (study.table["plate"] == plate).to_numpy()
            given = ["d0"] * len(label) if method == "scbd" else label
            study.add(method, test, given, fold=f"plate={plate}")
    page = made(study)
    heads = re.findall(r"<h3>(.*?)</h3>", page)
    assert heads == ["P1", "P2"]
    first = page[page.index("<h3>P1") : page.index("<h3>P2")]
    found = maps(first)
    symbols = {
        said.split(": ")[1]: (colour, text) for colour, said, text in found["label"].values()
    }
    assert len({one for one in symbols.values() if one[1]}) == 8
    assert sum(one == ("other", "") for one in symbols.values()) == 4
    assert "4 other labels" in page
    for _, said, text in found["scbd: label given most often"].values():
        assert said.endswith(": d0")
        assert text == symbols["d0"][1]


def test_plates_that_are_not_shown_are_counted(
    make_study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("a", f"P{n}", well) for n in range(7) for well in ("A01", "P24")]
    study = study_of(make_study, rows)
    study.add("erm", (study.table["plate"] != "P6").to_numpy(), ["a"] * len(rows), fold="given")
    page = made(study)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["P0", "P1", "P2", "P3"]
    assert "Shown: 4 of 6 held-out plates, the first by name." in page
    assert 'viewBox="-1.6 -1.4 25.8 17.6"' in page
    monkeypatch.setattr(plates, "MOST_WELLS", 9)  # 4 maps of 2 wells a plate
    assert re.findall(r"<h3>(.*?)</h3>", made(study)) == ["P0"]


def test_a_random_split_shows_no_plate_beside_one_that_is_held_out(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study, [("a", "P1", "A01"), ("a", "P2", "A01"), ("b", "P2", "A02")])
    study.add("erm", np.array([False, True, False]), ["a"] * 3, fold="iid")
    assert re.findall(r"<h3>(.*?)</h3>", made(study)) == ["P2"]
    study.add("erm", np.array([True, False, False]), ["a"] * 3)
    assert re.findall(r"<h3>(.*?)</h3>", made(study)) == ["P1"]


def test_without_predictions_the_component_alone_is_drawn(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study, [("a", "P1", "A01"), ("a", "P2", "A01"), ("b", "P2", "A02")])
    study.add("erm", np.array([True, False, False]), [None] * 3)
    assert list(maps(made(study))) == ["label", "erm: leading component"]


def test_wells_are_found_by_the_name_of_their_column(make_study: Callable[..., Any]) -> None:
    rows = [("a", "P1", "A01"), ("a", "P2", "AA30")]
    study = study_of(make_study, rows, ROLES.model_copy(update={"well": None}))
    study.add("erm", np.array([False, True]), ["a", "a"])
    found = maps(made(study))
    assert found["label"] == {"29 26": ("c0", "AA30: a", "a")}
    assert [row_name(row) for row in (0, 25, 26, 31)] == ["A", "Z", "AA", "AF"]


@pytest.mark.parametrize("well", ["", "7", "site-3"])
def test_what_is_no_well_gives_no_section(make_study: Callable[..., Any], well: str) -> None:
    study = study_of(make_study, [("a", "P1", well), ("a", "P2", well)])
    study.add("erm", np.array([True, False]), ["a", "a"])
    assert made(study) == ""


def test_hostile_names_stay_text(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study, [(HOSTILE, HOSTILE, "A01"), (HOSTILE, "P2", "A02")])
    study.add("erm", np.array([True, False]), [HOSTILE] * 2)
    page = made(study)
    assert "<script" not in page
    assert "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
