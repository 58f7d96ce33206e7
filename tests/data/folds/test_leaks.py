"""Random nested tables: what a fold holds out decides nothing that is fitted on the rest."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deconfound.data.folds.fold import Fold, make_fold
from deconfound.data.folds.groups import groups
from deconfound.data.tables.table import Roles, nested_ids

LEVELS = ("source", "series", "plate", "section")
few = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[pd.DataFrame, Roles]:
    """An unbalanced table of 1 … 4 levels; names repeat under other parents, wells may be missing
    or straddle the groups of the innermost level."""
    levels = LEVELS[-draw(st.integers(1, 4)) :]
    rows = draw(
        st.lists(
            st.tuples(
                *(st.sampled_from("12") for _ in levels),
                st.sampled_from(["A1", "A2", "B1", None]),
                st.sampled_from("abc"),
            ),
            min_size=2,
            max_size=24,
        )
    )
    table = pd.DataFrame(rows, columns=[*levels, "well", "y"])
    well = draw(st.sampled_from(["well", None]))
    environment = draw(st.sampled_from(levels))
    return table, Roles(label="y", environment=(environment,), levels=levels, well=well)


def folds_of(table: pd.DataFrame, roles: Roles) -> list[tuple[int, str, Fold]]:
    """(depth, identity, fold) of every group of every level that may be held out."""
    return [
        (depth, group.identity, make_fold(table, roles, group.fold, val_fraction=0.2))
        for depth, level in enumerate(roles.levels)
        for group in groups(table, roles, level)
        if group.refused is None
    ]


@few
@given(problem=problems())
def test_every_fold_means_what_its_level_says(problem: tuple[pd.DataFrame, Roles]) -> None:
    """The group is the test, whole; training has a sibling of one parent and none of the group."""
    table, roles = problem
    ids = nested_ids(table, roles.levels)
    for depth, identity, fold in folds_of(table, roles):
        inside = (ids[roles.levels[depth]] == identity).to_numpy()
        kept = np.isin(fold.part, ["train", "val", "id_test"])
        np.testing.assert_array_equal(fold.part == "test", inside)
        assert (fold.part == "train").any()
        assert not (kept & inside).any()
        if depth:
            parent = ids[roles.levels[depth - 1]]
            assert (kept & (parent == identity.rpartition("/")[0]).to_numpy()).any()
        for inner in roles.levels[depth:]:
            assert not set(ids[inner][kept]) & set(ids[inner][inside])


@few
@given(problem=problems())
def test_a_physical_well_is_on_one_side(problem: tuple[pd.DataFrame, Roles]) -> None:
    table, roles = problem
    if roles.well is None:
        return
    outer = [level for level in roles.levels if level != "section" or "plate" not in roles.levels]
    place = [tuple(row) for row in table[[*outer, "well"]].itertuples(index=False)]
    has_well = (table["well"].fillna("") != "").tolist()
    for _, _, fold in folds_of(table, roles):
        used, held = (
            {place[row] for row in np.flatnonzero(np.isin(fold.part, parts)) if has_well[row]}
            for parts in (["train", "val", "id_test"], ["test"])
        )
        assert not used & held


@few
@given(problem=problems(), seed=st.integers(0, 9))
def test_held_out_rows_decide_no_other_rows_part(
    problem: tuple[pd.DataFrame, Roles], seed: int
) -> None:
    """Labels of the test replaced by noise, and its rows shuffled in place, change nothing."""
    table, roles = problem
    stream = np.random.default_rng(seed)
    for _, _, fold in folds_of(table, roles):
        test = fold.rows("test")
        noisy = table.copy()
        noisy.loc[test, "y"] = stream.choice(["a", "new", None], len(test))
        again = make_fold(noisy, roles, fold.name, val_fraction=0.2)
        np.testing.assert_array_equal(again.part, fold.part)
        without = table.drop(index=test[1:]).reset_index(drop=True)
        left = np.delete(np.arange(len(table)), test[1:])
        part = make_fold(without, roles, fold.name, val_fraction=0.2).part
        unused = np.isin(fold.part[left], ["unused", "test"]) | np.isin(part, ["unused", "test"])
        if not (fold.part == "unused").any():
            np.testing.assert_array_equal(part[~unused], fold.part[left][~unused])


def test_the_tables_hold_every_kind_of_fold() -> None:
    """The control: folds of every depth and all sizes of nesting come up."""
    seen: set[tuple[int, int]] = set()

    @settings(max_examples=14, deadline=None)
    @given(problem=problems())
    def collect(problem: tuple[pd.DataFrame, Roles]) -> None:
        table, roles = problem
        seen.update((len(roles.levels), depth) for depth, _, _ in folds_of(table, roles))

    collect()
    assert seen >= {(levels, depth) for levels in range(1, 4) for depth in range(levels)}


@pytest.mark.parametrize("column", ["y", "well"])
def test_a_table_without_a_fold_is_not_an_error(column: str) -> None:
    table = pd.DataFrame({"plate": ["1", "1"], "well": ["A1", None], "y": ["a", "b"]})
    roles = Roles(label="y", environment=("plate",), levels=("plate",), well="well")
    assert folds_of(table.assign(**{column: "A1"}), roles) == []
