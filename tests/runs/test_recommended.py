"""What is recommended for a screen: one recipe a situation, by counts and marks alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.controls import CONTROL_TYPE
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.runs.config import STANDARDISED, read_config
from deconfound.runs.recommended import recommend

LEVELS = ("series", "plate", "section")
RECIPES = Path(__file__).parents[2] / "recipes" / "recommended"
IMAGES = "erm on images whose environments are made alike in spectra, taken over "

MakeTable = Callable[..., pd.DataFrame]
Make = Callable[..., Screen]


@pytest.fixture
def make(make_table: MakeTable, make_screen: Callable[..., Screen], tmp_path: Path) -> Make:
    """A screen of black images, or profiles, whose environment is the section."""

    def screen(
        cells: int,
        *,
        marked: bool = False,
        environment: tuple[str, ...] = LEVELS,
        profiles: bool = False,
        table: pd.DataFrame | None = None,
    ) -> Screen:
        table = make_table(cells) if table is None else table
        if marked:
            table[CONTROL_TYPE] = np.where(table["compound"] == "c0", "negcon", "trt")
        roles = Roles(label="compound", environment=environment, levels=LEVELS, well="well")
        images = np.zeros((len(table), 2, *(() if profiles else (8, 8))), np.float32)
        name = f"screen-{len(list(tmp_path.iterdir()))}"
        return make_screen(tmp_path / name, images, table, roles)

    return screen


def alike(data: DataOptions) -> tuple[str | None, str, str]:
    return data.standardise_by, data.standardise_with, data.standardise


def test_controls_are_taken_where_every_environment_has_enough(make: Make) -> None:
    found = recommend(make(40, marked=True))
    assert alike(found.config.data) == ("environment", "controls", "spectra")
    assert found.why == (
        IMAGES + "negative controls",
        "every environment has at least 16 negative controls",
    )
    assert (found.config.method, found.config.training.augment) == ("erm", "dihedral")
    assert (found.config.training.schedule, found.config.training.warmup_steps) == ("cosine", 20)
    assert found.config.options.model_dump(include={"norm", "learning_rate"}) == {
        "norm": "batch", "learning_rate": 0.002,
    }  # fmt: skip


def test_labels_that_are_named_are_controls(make: Make) -> None:
    data = DataOptions(controls=("c1",), val_fraction=0.2)
    found = recommend(make(40), data)
    assert found.config.data == data.model_copy(
        update={
            "standardise_by": "environment",
            "standardise_with": "controls",
            "standardise": "spectra",
        }
    )


def test_all_images_are_taken_where_no_control_is_marked(make: Make) -> None:
    found = recommend(make(40))
    assert alike(found.config.data) == ("environment", "all", "spectra")
    assert found.why == (
        IMAGES + "all images",
        "every environment has at least 16 images, but no row is marked as a control",
    )


def test_all_images_are_taken_where_controls_are_few(make: Make) -> None:
    found = recommend(make(16, marked=True))
    assert alike(found.config.data) == ("environment", "all", "spectra")
    assert found.why[1] == (
        "every environment has at least 16 images, but not every environment has 16 negative "
        "controls"
    )


def test_the_innermost_level_with_enough_rows_stands_in(make: Make) -> None:
    found = recommend(make(6))
    assert alike(found.config.data) == ("plate", "all", "spectra")
    assert found.text == (
        "erm on images whose groups of plate are made alike in spectra, taken over all images; "
        "not every environment has 16 images; every group of plate has at least 16 images, but "
        "no row is marked as a control"
    )


def test_without_a_level_of_enough_rows_nothing_is_made_alike(make: Make) -> None:
    data = DataOptions(val_fraction=0.4, id_test_fraction=0.4)
    found = recommend(make(6), data)
    assert found.config.data == data
    assert found.config.held_out_notes == []
    assert found.text == (
        "erm, no groups made alike; no level has 16 images in each of its groups, nor has every "
        "environment"
    )


def test_one_environment_has_nothing_to_be_like(make: Make, make_table: MakeTable) -> None:
    table = make_table(40).assign(hospital="H")
    found = recommend(make(40, environment=("hospital",), table=table))
    assert found.config.data == DataOptions()
    assert found.config.options.model_dump()["learning_rate"] == 0.002
    assert found.text == "erm, no groups made alike; the screen has one environment"


def test_groups_that_percentiles_make_alike_are_left_as_they_are(make: Make) -> None:
    data = DataOptions(transform="percentile", percentile_by="plate")
    found = recommend(make(40, marked=True), data)
    assert found.config.data == data
    assert found.why[1] == "percentiles of plate make its groups alike already"


def test_profiles_are_made_alike_by_moments_and_not_turned(make: Make) -> None:
    found = recommend(make(40, marked=True, profiles=True))
    assert alike(found.config.data) == ("environment", "controls", "moments")
    assert found.config.training.augment == "none"
    assert found.why[0].startswith("erm on profiles whose environments are made alike in moments")


def test_groups_that_are_named_are_kept(make: Make) -> None:
    screen = make(16, marked=True)
    for by, over in (("plate", "controls"), ("section", "all")):
        found = recommend(screen, DataOptions(standardise_by=by))
        assert alike(found.config.data) == (by, over, "spectra")
    found = recommend(make(6), DataOptions(standardise_by="section"))
    assert alike(found.config.data) == ("section", "all", "spectra")
    assert found.why[1] == "not every group of section has 16 images"


def test_what_is_counted_is_what_statistics_are_taken_over(
    make: Make, make_table: MakeTable
) -> None:
    """A group of training by its training rows, one that is held out by all of its rows."""
    table = make_table(40)
    first = (table[[*LEVELS]] == ["S1", "P1", "A"]).all(axis=1)
    control = np.flatnonzero(first & (table["compound"] == "c0"))
    screen = make(40, marked=True, table=table.drop(index=control[16:]).reset_index(drop=True))
    held_out = recommend(screen, DataOptions(fold="section=S1/P1/A"))
    assert held_out.config.data.standardise_with == "controls"
    for fold in ("iid", "section=S1/P1/B"):
        assert recommend(screen, DataOptions(fold=fold)).config.data.standardise_with == "all"


def test_labels_held_out_do_not_count(make: Make, make_table: MakeTable) -> None:
    table = make_table(40)
    table[CONTROL_TYPE] = np.where(table["compound"] == "c0", "negcon", "trt")
    other = table.copy()
    held_out = (other["series"] == "S1") & (other["plate"] == "P1")
    labels = other.loc[held_out, "compound"]
    other.loc[held_out, "compound"] = np.roll(labels.to_numpy(), 7)
    data = DataOptions(fold="plate=S1/P1")
    found = [recommend(make(40, table=one), data) for one in (table, other)]
    assert found[0] == found[1]
    assert found[0].config.data.standardise_with == "controls"


def test_every_score_of_it_tells_that_held_out_images_take_part(make: Make) -> None:
    config = recommend(make(40)).config
    assert config.held_out_notes == [STANDARDISED]
    assert config.title == "erm-da"


def test_a_fold_that_is_none_is_refused_as_ever(make: Make) -> None:
    with pytest.raises(UserError, match="no such group"):
        recommend(make(40), DataOptions(fold="plate=S1/P9"))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["images", "profiles"])
def test_files_of_recipes_are_what_is_recommended(kind: str, marked: bool, make: Make) -> None:
    file = RECIPES / f"{kind}{'-controls' if marked else ''}.yaml"
    screen = make(40, marked=marked, profiles=kind == "profiles")
    assert read_config(file) == recommend(screen).config


def test_there_is_a_file_for_each_situation() -> None:
    names = {file.stem for file in RECIPES.iterdir()}
    assert names == {"images", "images-controls", "profiles", "profiles-controls"}
