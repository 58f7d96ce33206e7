"""Labels seen near what a fold holds out: under its parent, or in two groups of the first level."""

import numpy as np
import pandas as pd
import pytest

from deconfound.data.folds.nearby import seen_nearby
from deconfound.data.tables.table import Roles

LEVELS = ("Metadata_Series", "Metadata_Plate", "Metadata_Section")
ROLES = Roles(label="label", environment=LEVELS, levels=LEVELS)
PLACES = {
    "S1/P1/A1": "abc",
    "S1/P1/A2": "a",
    "S1/P2/A1": "b",
    "S2/P1/A1": "ac",
    "S3/P1/A1": "ad",
}
TABLE = pd.DataFrame(
    [(*place.split("/"), label) for place, labels in PLACES.items() for label in labels],
    columns=[*LEVELS, "label"],
)


def nearby(fold: str, held_out: str) -> dict[str, bool]:
    place = TABLE[list(LEVELS)].agg("/".join, axis=1)
    test = place.str.startswith(held_out).to_numpy()
    part = np.where(test, "test", "train")
    found = seen_nearby(TABLE, ROLES, fold, part)
    assert found is not None
    return dict(zip(TABLE["label"][test], found[test].tolist(), strict=True))


def test_of_a_section_its_plate_is_near() -> None:
    found = nearby("Metadata_Section=S1/P1/A1", "S1/P1/A1")
    assert found == {"a": True, "b": False, "c": False}


def test_of_a_plate_its_series_is_near() -> None:
    found = nearby("Metadata_Plate=S1/P1", "S1/P1")
    assert found == {"a": False, "b": True, "c": False}


def test_of_a_series_a_label_is_near_that_two_others_hold() -> None:
    assert nearby("Metadata_Series=S1", "S1") == {"a": True, "b": False, "c": False}
    assert nearby("Metadata_Series=S3", "S3") == {"a": True, "d": False}


def test_rows_outside_training_count_for_nothing() -> None:
    part = np.where(TABLE["Metadata_Series"] == "S1", "test", "train")
    part[TABLE["Metadata_Series"] == "S2"] = "val"
    found = seen_nearby(TABLE, ROLES, "Metadata_Series=S1", part)
    assert found is not None
    assert not found[part == "test"].any()


@pytest.mark.parametrize("fold", ["iid", "given", "Metadata_Well=A01"])
def test_a_fold_that_holds_no_group_of_a_level_out_has_nothing_nearby(fold: str) -> None:
    assert seen_nearby(TABLE, ROLES, fold, np.full(len(TABLE), "train")) is None


def test_without_a_training_row_nothing_is_known() -> None:
    assert seen_nearby(TABLE, ROLES, "Metadata_Series=S1", np.full(len(TABLE), "test")) is None
