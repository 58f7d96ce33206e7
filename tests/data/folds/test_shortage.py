"""A fold without rows for a part, or with one label: the cause, and a remedy that helps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

Pose = Callable[..., dict[str, int]]


@pytest.fixture
def posed(make_screen: Callable[..., Screen], tmp_path: Path) -> Pose:
    """A function that poses the problem of a table, given as columns, and counts its parts."""

    def posed(columns: dict[str, Any], **options: Any) -> dict[str, int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        table = pd.DataFrame(columns)
        images = np.zeros((len(table), 1, 4, 4), dtype=np.uint8)
        named = {name: name for name in ("well", "split") if name in columns}
        roles = Roles(label="y", environment=("e",), levels=("e",), **named)
        screen = make_screen(folder, images, table, roles)
        return pose(screen, DataOptions(**options)).fold.counts()

    return posed


def refused(pose: Pose, columns: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as error:
        pose(columns, **options)
    return str(error.value)


def test_few_rows_of_a_label_in_an_environment(posed: Pose) -> None:
    two = {"y": [*"aabbaabb"], "e": [*"ppppqqqq"], "f": [*"rsrsrsrs"]}
    said = refused(posed, two)
    assert said == (
        "fold iid: no rows for val; a label has at most 2 rows in one environment, and up to 2 "
        "stay in training; ingest with a --split column and pass --fold given"
    )
    said = refused(posed, two, environment=("e", "f"))
    assert "at most 1 rows in one environment" in said
    assert "name fewer columns of --environment, or ingest with" in said
    wells = {name: np.repeat(values, 10) for name, values in two.items()}
    wells["well"] = np.repeat([*"12345678"], 10)
    said = refused(posed, wells, iid_unit="well")
    assert "at most 2 wells in one environment" in said
    assert "; draw rows with --iid-unit cell, or ingest with" in said
    assert posed(wells)["val"] > 0


def test_a_label_that_is_an_identifier(posed: Pose) -> None:
    said = refused(posed, {"y": [f"cell{n}" for n in range(20)], "e": [*"pq"] * 10})
    assert said.endswith("val; each row has its own label; choose another --label than 'y'")


def test_a_fraction_too_small_for_the_rows_names_one_that_is_not(posed: Pose) -> None:
    three = {"y": [*"aaabbb"] * 2, "e": ["p"] * 6 + ["q"] * 6}
    small = {"val_fraction": 0.001, "id_test_fraction": 0.0}
    said = refused(posed, three, **small)
    assert said.endswith(
        "at most 3 rows in one environment, of which 0.001 may be none; pass --val-fraction 0.34"
    )
    assert posed(three, val_fraction=0.34)["val"] >= 4


def test_fractions_that_take_all(posed: Pose) -> None:
    said = refused(posed, {"y": [*"ab"] * 10, "e": [*"pq"] * 10}, val_fraction=0.99)
    assert said.endswith(
        "no rows for train; --val-fraction 0.99 and --id-test-fraction 0.1 take them all; lower "
        "them"
    )


def test_a_split_that_names_no_row_of_a_part(posed: Pose) -> None:
    columns = {"y": [*"ab"] * 10, "e": [*"pq"] * 10, "split": ["train", "test"] * 10}
    said = refused(posed, columns, fold="given")
    assert "no row of column 'split' says val; fill it in, or choose another --fold" in said


def test_an_environment_whose_loss_leaves_no_part(posed: Pose) -> None:
    columns = {"y": [*"ab"] * 20, "e": ["p"] * 36 + ["q"] * 4}
    said = refused(posed, columns, without="p")
    assert said == "fold iid without p: no rows for val; leave out another one"


def test_one_label_in_training(posed: Pose) -> None:
    one = {"y": ["a"] * 20, "e": [*"pq"] * 10}
    assert refused(posed, one).endswith(
        "training has 1 label; expected 2 or more, so has column 'y' in all rows: choose another "
        "--label"
    )
    apart = {"y": ["a"] * 20 + ["b"] * 20, "e": ["p"] * 20 + ["q"] * 20}
    assert refused(posed, apart, fold="e=q").endswith(
        "training has 1 label; expected 2 or more, all rows of the others (b) are in other parts: "
        "choose another fold, or another --label"
    )


def test_the_only_group_of_the_outermost_level_has_no_coarser_one(posed: Pose) -> None:
    said = refused(posed, {"y": [*"ab"] * 10, "e": ["p"] * 20}, fold="e=p")
    assert said.endswith("hold out a group of another level, or pass --fold iid")


def test_a_screen_without_roles_lists_its_columns(
    make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    table = pd.DataFrame({"gene": [*"ab"] * 4, "well": [*"12345678"], "batch": [*"ppqq"] * 2})
    images = np.zeros((8, 1, 4, 4), dtype=np.uint8)
    screen = make_screen(tmp_path / "s", images, table, Roles())
    with pytest.raises(UserError) as error:
        pose(screen, DataOptions())
    assert str(error.value) == (
        f"{screen.path}: names no label and no environment column; it has gene, well, batch; add "
        "--label gene --environment batch"
    )
