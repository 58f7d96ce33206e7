import csv
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles, coded
from deconfound.description.describe import describe, shared_information
from deconfound.description.description import Description
from deconfound.description.page import MISSING, MOST_LABELS, occupancy_grid
from deconfound.description.pixels import sample_rows
from deconfound.errors import UserError

HOSTILE = "<script>alert('$x^2$')</script>"


def made(path: Path, table: pd.DataFrame, roles: Roles, images: Any = None) -> Description:
    """The description of a screen of `table` with tiny images, written beside it."""
    if images is None:
        images = np.arange(len(table) * 16, dtype=np.uint16).reshape(-1, 1, 4, 4)
    with ScreenWriter(path / "s", "s", tuple("abc"[: images.shape[1]]), roles, {}) as writer:
        writer.append(images)
        writer.finish(table)
    return describe(path / "s", path / "out", quiet=True)


def plain(label: list[Any], plate: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"label": label, "plate": plate}, dtype="string")


ROLES = Roles(label="label", environment=("plate",), levels=("plate",))


def test_counts_levels_and_folds(screen: Screen) -> None:
    found = describe(screen.path, quiet=True)
    assert found.counts["images"] == 96
    assert (found.counts["labels"], found.counts["environments"]) == (3, 2)
    assert found.counts["wells"] == 16
    levels = found.levels.set_index("level")
    assert levels["groups"].tolist() == [2, 4, 8]
    assert levels["folds"].tolist() == [2, 4, 8]
    assert levels.loc["plate", "repeated"] == 2
    folds = found.folds.set_index("fold")
    assert folds.loc["plate=S1/P1", ["kept", "test", "unused"]].tolist() == [72, 24, 0]
    assert folds.loc["iid", "possible"]
    assert not found.warnings


def test_statistics_are_those_of_all_pixels(screen: Screen) -> None:
    found = describe(screen.path, quiet=True).statistics.set_index(["environment", "channel"])
    images = screen.read(np.arange(len(screen)))
    for plate in ("P1", "P2"):
        for c, channel in enumerate(screen.channels):
            pixels = images[(screen.table["plate"] == plate).to_numpy(), c].astype(float)
            row = found.loc[(plate, channel)]
            assert row["images"] == len(pixels)
            assert row["mean"] == pytest.approx(pixels.mean())
            assert row["sd"] == pytest.approx(pixels.std())
            assert row["saturated"] == 0


def test_black_constant_and_saturated_images_are_counted(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(1, 200, (6, 2, 4, 4)).astype(np.uint8)
    images[0, 0] = 0
    images[1, 0] = 7
    images[2, 1, :2] = 255
    found = made(tmp_path, plain([*"ababab"], [*"ppqqpq"]), ROLES, images)
    rows = found.statistics.set_index(["environment", "channel"])
    assert rows.loc[("p", "a"), ["black", "constant"]].tolist() == [1, 1]
    assert rows[["black", "constant"]].sum().tolist() == [1, 1]
    assert rows.loc[("q", "b"), "saturated"] == pytest.approx(0.5 / 3)
    assert any("Channel a: 2 of 6 images are black" in said for said in found.warnings)


def test_float_images_have_no_saturation(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 1, 4, 4), dtype=np.float32)
    found = made(tmp_path, plain([*"abab"], [*"ppqq"]), ROLES, images)
    assert found.statistics["saturated"].isna().all()


def test_a_sample_is_even_over_environments(screen: Screen) -> None:
    environment = coded(pd.Series(["big"] * 90 + ["small"] * 5 + ["mid"] * 20))
    rows = sample_rows(environment, 30)
    assert (np.diff(rows) > 0).all()
    drawn = np.bincount(environment.codes[rows])
    assert sorted(drawn) == [5, 12, 13]
    found = describe(screen.path, images=10, quiet=True)
    assert found.images_read == 10
    assert found.statistics.groupby("channel")["images"].sum().tolist() == [10, 10]


@pytest.mark.parametrize(
    ("label", "plate", "said"),
    [
        ("aabb", "ppqq", "are the same partition"),
        ("abcd", "ppqq", "Every label lies in one environment only"),
        ("aabb", "pqrs", "Every environment holds one label only"),
        ("aabbc", "pqpqp", "1 label of 3 lies in one environment only: c"),
        ("aabbb", "pqpqr", "1 environment of 3 holds one label only: r"),
        ("a" * 16 + "b" * 16, "p" * 15 + "q" * 16 + "p", "share much of their information"),
        ("abab", "pppp", "plate has 1 value: there is nothing to be invariant to"),
        ("aaaa", "ppqq", "label has 1 value: there is nothing to tell apart"),
        ("aabb", "ppqq", "training would have"),
    ],
)
def test_confounding_is_named(label: str, plate: str, said: str, tmp_path: Path) -> None:
    found = made(tmp_path, plain([*label], [*plate]), ROLES)
    assert said in " ".join([*found.warnings, *found.folds["reason"]])


def test_a_balanced_design_gives_no_warning(tmp_path: Path) -> None:
    found = made(tmp_path, plain([*"ab"] * 30, [*"pqr"] * 20), ROLES)
    assert found.warnings == ()
    assert found.shared_information == pytest.approx(0, abs=0.05)


def test_shared_information_is_the_known_one() -> None:
    stream = np.random.default_rng(0)
    label = stream.integers(0, 4, 20_000)
    environment = np.where(stream.random(20_000) < 0.5, label, stream.integers(0, 4, 20_000))
    known = normalized_mutual_info_score(label, environment, average_method="min")
    assert shared_information(label, environment) == pytest.approx(known, abs=1e-3)
    assert shared_information(label, label) == pytest.approx(1)
    assert np.isnan(shared_information(label, np.zeros_like(label)))
    assert np.isnan(shared_information(np.array([-1, -1]), np.array([0, 1])))


def test_labels_missing_from_a_fold_are_named(tmp_path: Path) -> None:
    found = made(tmp_path, plain([*"ababcb"], [*"pppqqq"]), ROLES)
    folds = found.folds.set_index("fold")
    assert folds.loc["plate=q", ["untrained", "untrained_labels"]].tolist() == [1, "c"]
    assert any("would test labels that training lacks, up to 1 (plate=p)" in said
               for said in found.warnings)  # fmt: skip


def test_levels_that_cannot_be_held_out_say_why(tmp_path: Path) -> None:
    table = plain([*"abab"], [*"pqpq"]).assign(batch=["1", "1", "2", "2"])
    table["plate"] = ["p", "p", "q", "q"]
    roles = Roles(label="label", environment=("plate",), levels=("batch", "plate"))
    found = made(tmp_path, table, roles)
    levels = found.levels.set_index("level")
    assert levels["folds"].tolist() == [2, 0]
    assert "has no other group of plate to train on" in levels.loc["plate", "refused"]


def test_levels_in_the_wrong_order_are_noticed(tmp_path: Path) -> None:
    table = plain([*"ab"] * 6, [*"pqrstu"] * 2).assign(batch=[*"112233"] * 2)
    roles = Roles(label="label", environment=("plate",), levels=("plate", "batch"))
    found = made(tmp_path, table, roles)
    assert any("Every plate lies in one batch" in said for said in found.warnings)


def test_missing_labels_and_environments_are_shown(tmp_path: Path) -> None:
    found = made(tmp_path, plain([*"ababa", None], ["p", "q", "q", "p", None, None]), ROLES)
    assert found.counts["images without environment"] == 2
    assert found.counts["images without label"] == 1
    grid = occupancy_grid(found)
    assert grid.labels == ["a", "b", MISSING]
    assert grid.environments == ["p", "q", MISSING]
    assert grid.images.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert found.statistics["environment"].isna().sum() == 1
    assert any("plate is missing for 2 images" in said for said in found.warnings)


def test_roles_may_be_absent_or_chosen(tmp_path: Path) -> None:
    found = made(tmp_path, plain([*"abab"], [*"ppqq"]), Roles())
    said = " ".join(found.warnings)
    assert "--label" in said
    assert "--environment" in said
    chosen = describe(tmp_path / "s", label="label", environment=("plate",), quiet=True)
    assert chosen.counts["labels"] == 2


def test_thousands_of_labels_and_plates(tmp_path: Path) -> None:
    count = 6000
    table = plain(
        [f"c{row % 3000}" for row in range(count)], [f"p{row // 10}" for row in range(count)]
    )
    images = np.zeros((count, 1, 2, 2), dtype=np.uint8)
    found = made(tmp_path, table, ROLES, images)
    grid = occupancy_grid(found)
    assert len(grid.labels) == MOST_LABELS
    assert f"the {MOST_LABELS} largest of 3,000 labels" in grid.left_out
    page = (tmp_path / "out" / "describe.html").read_text()
    assert "the 200 largest of 3,000 labels and the 200 largest of 600 environments" in page
    assert len(page) < 1_500_000
    assert found.occupancy["images"].sum() == count
    assert "too many" in found.levels.loc[0, "refused"]
    with Image.open(tmp_path / "out" / "occupancy.png") as picture:
        assert max(picture.size) < 4000


def test_every_plate_of_a_hundred_has_its_column_on_the_page(tmp_path: Path) -> None:
    labels, plates = (
        [f"c{row % 7}" for row in range(3000)],
        [f"p{row % 100}" for row in range(3000)],
    )
    plates[0], labels[0] = "p1", "c1"
    made(tmp_path, plain(labels, plates), ROLES, np.zeros((3000, 1, 2, 2), dtype=np.uint8))
    page = (tmp_path / "out" / "describe.html").read_text()
    table = re.search(r'<table class="heat.*?</table>', page, flags=re.DOTALL)
    assert table is not None
    heads = re.findall(r'<th class="number" title="(.*?)">', table[0])
    assert heads == [f"p{plate}" for plate in range(100)]
    row = re.search(r'<tr><th title="c1">c1</th>(.*?)</tr>', table[0])
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[1])
    counted = pd.crosstab(pd.Series(labels), pd.Series(plates)).loc["c1"]
    assert [int(cell or 0) for cell in cells] == [counted[plate] for plate in heads]


def test_files_are_whole_and_values_are_escaped(tmp_path: Path) -> None:
    found = made(tmp_path, plain([HOSTILE, "b"] * 4, [*"ppqq"] * 2), ROLES)
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "occupancy.csv", "statistics.csv", "folds.csv", "occupancy.png", "describe.html",
    }  # fmt: skip
    with (out / "occupancy.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows} == {HOSTILE, "b"}
    assert sum(int(row["images"]) for row in rows) == 8
    page = (out / "describe.html").read_text()
    assert page.count("<script") == 2, "the page's data and its own script"
    assert HOSTILE not in page
    assert html.escape(HOSTILE, quote=False).split("'")[0] in page
    assert "default-src 'none'" in page
    assert found.images_read == 8
    with pytest.raises(UserError, match="already exists"):
        describe(tmp_path / "s", out, quiet=True)


def test_the_command_prints_and_writes(
    screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["describe", str(screen.path), "--out", str(tmp_path / "o"), "--quiet"])
    captured = capsys.readouterr()
    assert captured.err == ""
    for said in ("Contents", "plate=S1/P1", "c2", "Pixels", "describe.html"):
        assert said in captured.out
    assert "Traceback" not in captured.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "compund"], "did you mean 'compound'?"),
        (["--images", "0"], "expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, screen: Screen, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main(["describe", str(screen.path), "--out", str(tmp_path / "o"), *words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_page_begins_with_sample_images(tmp_path: Path) -> None:
    made(tmp_path, plain(["a", "b", "a", "b"], ["p1", "p1", "p2", "p2"]), ROLES)
    page = (tmp_path / "out" / "describe.html").read_text()
    assert page.index('<section id="samples">') < page.index('<section id="table-1">')
    assert page.count('class="tile"') == 4
    assert re.findall(r'<th><span class="cut" title="(\w+)">', page)[:4] == ["p1", "p2", "a", "b"]


def test_a_page_without_a_shown_label_says_so(tmp_path: Path) -> None:
    made(tmp_path, plain([None, None], ["p1", "p2"]), ROLES)
    page = (tmp_path / "out" / "describe.html").read_text()
    assert "No sample images" in page
    assert "no image has a label and an environment" in page
