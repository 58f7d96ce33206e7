"""Plate layouts of simulated screens."""

import pytest

from deconfound.data.simulation.layout import grid_layout, lincs_layout
from deconfound.errors import UserError


@pytest.mark.parametrize(
    ("labels", "series", "plates"), [(9, 4, 2), (2, 2, 1), (13, 3, 3), (40, 5, 2)]
)
def test_grid_shares_conditions_only_partly(labels: int, series: int, plates: int) -> None:
    wells = grid_layout(labels, series, plates, sections=2, wells=2, seed=0)
    assert wells["Label"].nunique() == labels
    assert (wells.groupby("Label")["Metadata_Series"].nunique() >= 2).all()
    plate = wells.groupby(["Metadata_Series", "Metadata_Plate"])
    assert len(plate) == series * plates
    assert plate["Label"].agg(lambda label: (label == 0).any()).all()
    if labels > 5:
        held = wells.groupby("Metadata_Series")["Label"].nunique()
        assert (held < labels).all()
        assert wells.groupby("Metadata_Series")["Label"].agg(frozenset).nunique() > 1


def test_a_grid_well_lies_in_one_section_and_holds_one_label() -> None:
    wells = grid_layout(9, 4, 2, sections=2, wells=2, seed=0)
    assert not wells.duplicated(["Metadata_Series", "Metadata_Plate", "Metadata_Well"]).any()
    per_section = wells.groupby(
        ["Metadata_Series", "Metadata_Plate", "Metadata_Section", "Label"]
    ).size()
    assert (per_section == 2).all()


def test_lincs_maps_have_exclusive_treatments_and_shared_controls() -> None:
    wells = lincs_layout(13, 4, maps=6, replicates=2, wells=2, seed=0)
    treated = wells[wells["Label"] > 0]
    assert (treated.groupby("Label")["Metadata_PlateMap"].nunique() == 1).all()
    assert treated["Label"].nunique() == 12
    plate = wells.groupby(["Metadata_Series", "Metadata_Plate"])["Label"]
    assert plate.agg(lambda label: (label == 0).any()).all()


def test_lincs_has_one_full_series_and_exclusive_partial_ones() -> None:
    wells = lincs_layout(13, 4, maps=6, replicates=2, wells=2, seed=0)
    maps = wells.groupby("Metadata_Series")["Metadata_PlateMap"].agg(set)
    assert maps["S1"] == {f"M{k}" for k in range(1, 7)}
    partial = [maps[f"S{k}"] for k in (2, 3, 4)]
    assert sum(map(len, partial)) == len(set.union(*partial)) == 6
    plates = wells.groupby(["Metadata_Series", "Metadata_PlateMap"])["Metadata_Plate"].nunique()
    assert (plates["S1"] == 1).all()
    assert (plates.drop("S1") == 2).all()
    # A held-out series leaves every treatment one series to learn from.
    assert (wells.groupby("Label")["Metadata_Series"].nunique() >= 2).all()


def test_layouts_depend_on_the_seed_alone() -> None:
    first = grid_layout(9, 4, 2, 2, 2, seed=0)
    assert first.equals(grid_layout(9, 4, 2, 2, 2, seed=0))
    assert not first.equals(grid_layout(9, 4, 2, 2, 2, seed=1))


def test_wells_are_named_by_row_and_column() -> None:
    wells = lincs_layout(2, 2, maps=1, replicates=1, wells=10, seed=0)
    names = wells[wells["Metadata_Series"] == "S1"]["Metadata_Well"].tolist()
    assert names == [*(f"A{k:02d}" for k in range(1, 13)), *(f"B{k:02d}" for k in range(1, 9))]
    large = lincs_layout(2, 2, maps=1, replicates=1, wells=768, seed=0)
    assert large["Metadata_Well"].iloc[1535] == "AF48"
    with pytest.raises(UserError, match="1538 wells"):
        lincs_layout(2, 2, maps=1, replicates=1, wells=769, seed=0)
