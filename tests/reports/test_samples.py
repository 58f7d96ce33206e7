"""Sample images of a report: which are shown, under which limits, and in which channels."""

import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.display import samples
from deconfound.reports.cells import read_cells
from deconfound.reports.samples import sample_images
from deconfound.reports.sources import find_sources

HOSTILE = '</style><img src=x onerror="alert(1)">'


def screened(labels: list[str], plates: list[str], each: int = 3) -> pd.DataFrame:
    """`each` rows of every label on every plate."""
    rows = [(label, plate) for label in labels for plate in plates for _ in range(each)]
    return pd.DataFrame(rows, columns=["drug", "plate"]).assign(well="A01")


def made(study: Any, seed: int = 0) -> str:
    sources = find_sources([study.root], 10, seed)
    return str(sample_images(sources.runs, read_cells(sources.samples), seed))


def added(study: Any, held_out: str) -> Any:
    study.add("erm", (study.table["plate"] == held_out).to_numpy(), [None] * len(study.table))
    return study


def grey(count: int, side: int = 8, channels: int = 1) -> np.ndarray:
    stream = np.random.default_rng(0)
    return stream.integers(0, 255, (count, channels, side, side), dtype=np.uint8)


def rows_of(page: str) -> list[list[int]]:
    """Tiles in each cell of the table, row by row."""
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [
        [cell.count('class="tile"') for cell in re.split(r"<td", row)[1:]]
        for row in body.split("<tr>")[1:]
    ]


def test_every_pair_has_two_images_of_its_own_or_a_dash(make_study: Callable[..., Any]) -> None:
    table = screened(["a", "b"], ["P1", "P2", "P3"])
    table = table[~((table["drug"] == "b") & (table["plate"] == "P3"))].reset_index(drop=True)
    page = made(added(make_study(table, grey(len(table))), "P2"))
    assert rows_of(page) == [[2, 2, 2], [2, 2, 0]]
    assert page.count('class="none"') == 1
    assert re.search(r'title="P2">P2</span><small>held out', page)
    assert page.count("held out</small>") == 1
    body = page[page.index("<tbody>") : page.index("</tbody>")].split("<td")[1:]
    pairs = [("a", "P1"), ("a", "P2"), ("a", "P3"), ("b", "P1"), ("b", "P2")]
    for pair, cell in zip(pairs, body, strict=False):
        rows = [int(row) for row in re.findall(r'aria-label="row (\d+)"', cell)]
        assert [tuple(table.loc[row, ["drug", "plate"]]) for row in rows] == [pair] * 2
        assert 'title="3 images"' in cell


def test_one_seed_shows_the_same_images_and_another_others(make_study: Callable[..., Any]) -> None:
    table = screened(["a", "b"], ["P1", "P2"], each=20)
    study = added(make_study(table, grey(len(table))), "P2")
    assert made(study) == made(study)
    assert made(study) != made(study, seed=1)


def test_at_most_eight_of_each_by_a_rule_that_is_said(make_study: Callable[..., Any]) -> None:
    labels, plates = [f"d{n}" for n in range(11)], [f"P{n}" for n in range(20)]
    table = screened(labels, plates, each=1)
    table = pd.concat([table, table[table["drug"] == "d10"]], ignore_index=True)
    page = made(added(make_study(table, grey(len(table), side=2)), "P17"))
    shown = rows_of(page)
    assert (len(shown), {len(row) for row in shown}) == (8, {8})
    assert 'title="d10"' in page
    assert "The 8 of 11 labels with most images are shown" in page
    assert "of 20 environments 8 are shown, spread evenly over the list, 4 of them held out" in page
    assert re.search(r'title="P17">P17</span><small>held out', page)
    heads = re.findall(r'<th><span class="cut" title="(P\d+)"', page)
    assert heads == ["P0", "P2", "P5", "P8", "P10", "P13", "P16", "P17"]


def test_where_every_environment_is_held_out_once_none_is_marked(
    make_study: Callable[..., Any],
) -> None:
    table = screened(["a"], ["P1", "P2"])
    study = make_study(table, grey(len(table)))
    for plate in ("P1", "P2"):
        test = (table["plate"] == plate).to_numpy()
        study.add("erm", test, [None] * len(table), fold=f"plate={plate}")
    assert "held out</small>" not in made(study)


def test_each_channel_can_be_seen_alone_without_a_script(make_study: Callable[..., Any]) -> None:
    table = screened(["a"], ["P1", "P2"])
    names = ("DNA", HOSTILE)
    page = made(added(make_study(table, grey(len(table), channels=2), names), "P1"))
    assert re.findall(r'id="(sample-0-[a-z]+-\d)"', page) == [
        "sample-0-limits-0", "sample-0-limits-1", "sample-0-channel-0", "sample-0-channel-1",
        "sample-0-channel-2",
    ]  # fmt: skip
    assert len(set(re.findall(r"data:image/webp;base64,[^\"]+", page))) == 6
    assert page.count("data:image") == 6
    assert "<script" not in page
    assert HOSTILE not in page
    assert " hidden" not in page


def test_photographs_and_single_channels_have_no_choice_of_channel(
    make_study: Callable[..., Any],
) -> None:
    table = screened(["a"], ["P1", "P2"])
    page = made(added(make_study(table, grey(len(table), channels=3), ("r", "g", "b")), "P1"))
    assert page.count("data:image") == 2
    assert page.count("-channel-0") == 3
    assert "all channels" not in page
    assert "Same limits: the whole range of the pixels" in page


def test_noise_takes_a_lower_quality_to_stay_small(
    make_study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = screened(["a", "b"], ["P1", "P2"])
    names = ("DNA", "ER", "RNA", "AGP", "Mito", "BF")
    study = added(make_study(table, grey(len(table), 48, 6), names), "P1")
    page = made(study)
    assert page.count("data:image") == 12
    assert "The first 5 of 6 channels can be seen alone." in page
    monkeypatch.setattr(samples, "MOST_BYTES", len(page) // 2)
    assert len(made(study)) < 0.6 * len(page)


def test_hostile_names_stay_text(make_study: Callable[..., Any]) -> None:
    table = screened([HOSTILE, "b"], ["P1", HOSTILE])
    page = made(added(make_study(table, grey(len(table))), HOSTILE))
    assert HOSTILE not in page
    assert "&lt;/style&gt;&lt;img src=x onerror=&#34;alert(1)&#34;&gt;" in page


def test_profiles_have_no_section_and_a_screen_that_is_gone_a_reason(
    make_study: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = screened(["a"], ["P1", "P2"])
    study = added(make_study(table, grey(len(table))), "P1")
    shutil.rmtree(study.root / "screen")
    assert "No sample images: the screen is no longer at" in made(study)
    root = tmp_path_factory.mktemp("profiles")
    profiles = np.zeros((len(table), 4), np.float32)
    other = type(study)(root, table, profiles, ("f1", "f2", "f3", "f4"))
    assert made(added(other, "P1")) == ""


def test_labels_and_environments_are_never_more_than_the_table_has() -> None:
    assert samples._evenly([1, 2, 3], 8) == [1, 2, 3]
    assert samples._evenly(list(range(10)), 4) == [0, 2, 5, 7]
