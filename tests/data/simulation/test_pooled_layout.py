"""Simulated optical pooled screens: library, complexes, cells in wells, counterfactuals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.config import validated
from deconfound.data.folds.fold import make_fold
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.layout import complex_lines, draw_library, pooled_cells
from deconfound.data.simulation.phenotype import TRAIT_NAMES
from deconfound.data.simulation.simulate import COMPLEX_FILE, SimulateConfig, simulate
from deconfound.data.tables.table import joined
from deconfound.errors import UserError

TINY = {
    "layout": "ops", "cells": 260, "genes": 16, "complexes": 4, "guides": 2, "wells": 7,
    "plates": 3, "size": 24,
}  # fmt: skip


def tiny(out: Path, **options: Any) -> Screen:
    return simulate(out, config=SimulateConfig.model_validate(TINY | options), quiet=True)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return tiny(tmp_path_factory.mktemp("ops") / "screen")


def test_the_default_screen_is_that_of_the_issue() -> None:
    config = SimulateConfig(layout="ops").complete()
    assert (config.genes, config.guides, config.wells, config.plates) == (200, 4, 34, 6)
    library = draw_library(200, 30, 4, 1.5, seed=0)
    table, shift = pooled_cells(library, 12_000, 34, 6, seed=0)
    assert shift.shape == (12_000, len(TRAIT_NAMES))
    wells = table.drop_duplicates(["Metadata_Plate", "Metadata_Well"])
    assert wells.groupby("Metadata_Plate").size().tolist() == [6, 6, 6, 6, 5, 5]
    per_gene = table.groupby("Metadata_Gene")["Metadata_sgRNA"].nunique()
    assert (per_gene.drop("nontargeting") == 4).all()
    assert per_gene["nontargeting"] == 40
    assert table["Metadata_sgRNA"].str.fullmatch("[ACGT]{20}").all()
    assert (table.groupby("Metadata_sgRNA")["Metadata_Gene"].nunique() == 1).all()
    assert sum(map(len, library.complexes.values())) == 150
    assert min(map(len, library.complexes.values())) >= 2


def test_every_gene_with_enough_cells_lies_in_every_well_about_equally_often() -> None:
    table, _ = pooled_cells(draw_library(20, 4, 3, 1.0, seed=1), 2_000, 34, 6, seed=1)
    well = joined(table, ["Metadata_Plate", "Metadata_Well"])
    counts = pd.crosstab(table["Metadata_Gene"], well)
    assert counts.sum(axis=1).min() >= 34
    assert counts.to_numpy().min() >= 1
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert well.is_monotonic_increasing


def test_genes_of_a_complex_share_a_phenotype_and_guides_differ_in_strength() -> None:
    library = draw_library(100, 10, 4, 2.0, seed=0)
    place = {name: row for row, name in enumerate(library.genes)}
    assert not library.shift[0].any()
    assert library.genes[0] == "nontargeting"
    within, between = [], []
    centres = []
    for members in library.complexes.values():
        of_complex = library.shift[[place[name] for name in members]]
        centres.append(of_complex.mean(axis=0))
        within.append(np.linalg.norm(of_complex - centres[-1], axis=1).mean())
    for first in range(10):
        between += [np.linalg.norm(centres[first] - centres[other]) for other in range(first)]
    assert max(within) < min(between)
    assert min(within) > 0
    table, shift = pooled_cells(library, 1_000, 6, 2, seed=0)
    row = table.index[table["Metadata_Gene"] == "GENE007"][0]
    strength = table["Truth_GuideStrength"][row]
    assert 0.7 <= strength <= 1.0
    np.testing.assert_allclose(shift[row], strength * library.shift[7], rtol=1e-6)
    assert table.groupby("Metadata_sgRNA")["Truth_GuideStrength"].nunique().max() == 1
    assert table["Truth_GuideStrength"].nunique() > 300


def test_a_screen_has_the_columns_roles_and_truth_of_a_pooled_screen(screen: Screen) -> None:
    table, roles = screen.table, screen.roles
    assert roles.label == "Metadata_Gene"
    assert roles.environment == roles.levels == ("Metadata_Plate", "Metadata_Well")
    assert roles.well == "Metadata_Well"
    assert (len(screen), screen.image_shape) == (260, (4, 24, 24))
    control = table["Metadata_Gene"] == "nontargeting"
    assert set(table.loc[control, "Metadata_Control_Type"]) == {"negcon"}
    assert set(table.loc[~control, "Metadata_Control_Type"]) == {"treatment"}
    place = ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_ObjectNumber"]
    assert not table.duplicated(place).any()
    assert set(screen.provenance["environments"]) == set(joined(table, roles.levels))
    moved = screen.provenance["phenotypes"]
    assert set(moved["nontargeting"].values()) == {0.0}
    assert set(moved) == set(table["Metadata_Gene"])


def test_its_split_is_that_of_the_paper_and_blind_to_genes_and_wells(screen: Screen) -> None:
    counts = make_fold(screen.table, screen.roles, "given").counts()
    assert (counts["train"], counts["val"], counts["test"]) == (216, 5, 39)
    table, _ = pooled_cells(draw_library(20, 4, 3, 1.0, seed=1), 8_000, 10, 2, seed=1)
    held_out = table["Metadata_Split"] == "test"
    for column in ("Metadata_Gene", "Metadata_Well"):
        share = held_out.groupby(table[column]).mean()
        assert share.between(0.08, 0.22).all()
    assert not held_out.is_monotonic_increasing


def test_the_complex_file_says_what_the_table_does(screen: Screen) -> None:
    lines = (screen.path / COMPLEX_FILE).read_text(encoding="utf-8").splitlines()
    read = {name: genes.split(" ") for name, genes in (line.split("\t") for line in lines)}
    genes = screen.table.drop_duplicates("Metadata_Gene").set_index("Metadata_Gene")
    assert len(read) == 4
    told = {gene: name for name, members in read.items() for gene in members}
    assert told == genes["Truth_Complex"].dropna().to_dict()
    assert pd.isna(genes.loc["nontargeting", "Truth_Complex"])
    assert complex_lines({"a": ("X", "Y")}) == "a\tX Y\n"


def test_the_same_seed_gives_the_same_files_and_another_others(
    screen: Screen, tmp_path: Path
) -> None:
    again = tiny(tmp_path / "screen")
    assert again.index.model_dump() == screen.index.model_dump()
    other = tiny(tmp_path / "other", seed=1)
    assert not other.table["Metadata_sgRNA"].equals(screen.table["Metadata_sgRNA"])


def test_own_well_returns_the_stored_pixels_and_another_does_not(screen: Screen) -> None:
    reopened = open_screen(screen.path)
    well = joined(screen.table, screen.roles.environment)
    for name in well.unique().tolist():
        rows = np.flatnonzero((well == name).to_numpy(dtype=bool))[::9]
        own = counterfactual(reopened, rows, name)
        np.testing.assert_array_equal(own, screen.read(rows))
        other = next(w for w in well.unique().tolist() if w != name)
        assert not np.array_equal(counterfactual(reopened, rows, other), own)


def test_technical_effects_are_nested_plate_over_well(screen: Screen, tmp_path: Path) -> None:
    plates_only = tiny(tmp_path / "screen", well_spread=0.0)
    optics = plates_only.provenance["environments"]
    assert optics["P1/A01"] == optics["P1/A02"] != optics["P2/A01"]
    assert (
        screen.provenance["environments"]["P1/A01"] != screen.provenance["environments"]["P1/A02"]
    )


def test_a_well_or_plate_can_be_held_out(screen: Screen) -> None:
    for column, group in (("Metadata_Plate", "P2"), ("Metadata_Well", "P1/A02")):
        fold = make_fold(screen.table, screen.roles, f"{column}={group}")
        own = joined(screen.table, screen.roles.levels).str.startswith(group)
        np.testing.assert_array_equal(fold.part == "test", own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 20}, "20 cells for 34 guides; raise --cells"),
        ({"wells": 2}, "2 wells in 3 plates; raise --wells"),
        ({"complexes": 9}, "9 complexes of at least 2 of 12 genes; lower --complexes"),
        ({"labels": 9}, "whose labels are genes; give --genes"),
    ],
)
def test_an_impossible_screen_is_a_user_error(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path / "screen", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_complexes_is_a_screen_of_lone_genes() -> None:
    library = draw_library(10, 0, 2, 1.0, seed=0)
    assert library.complexes == {}
    assert len(library.shift) == 11
    with pytest.raises(UserError, match="'complexes'"):
        validated(SimulateConfig, {"complexes": -1}, "simulate")
