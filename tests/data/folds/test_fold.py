import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deconfound.data.folds.fold import PARTS, Fold, make_fold, shared_labels, without_environment
from deconfound.data.folds.groups import groups
from deconfound.data.tables.table import Roles, coded, nested_ids
from deconfound.errors import UserError

LEVELS = ("series", "plate", "section")
ROLES = Roles(label="y", environment=("plate",), levels=LEVELS, well="well")

few = settings(max_examples=6)


@st.composite
def nested_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Random nesting with repeated child names, shuffled rows; wells may straddle sections."""
    rows: list[dict[str, str]] = []
    for series in range(draw(st.integers(1, 2))):
        for plate in range(draw(st.integers(1, 2))):
            for section in range(draw(st.integers(1, 2))):
                for _ in range(draw(st.integers(1, 6))):
                    well = draw(st.sampled_from(["A01", "A02", f"B0{section}", f"C0{section}"]))
                    rows.append(
                        {
                            "series": f"S{series}",
                            "plate": f"P{plate}",
                            "section": f"x{section}",
                            "well": well,
                            "y": draw(st.sampled_from(["a", "b", "c"])),
                        }
                    )
    order = draw(st.permutations(range(len(rows))))
    return pd.DataFrame([rows[row] for row in order])


def table_of(rows: int, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=range(rows))


def all_folds(table: pd.DataFrame, **options: object) -> list[tuple[int, str, Fold]]:
    """(depth, identity, fold) of every group of every level that may be held out."""
    return [
        (depth, group.identity, make_fold(table, ROLES, group.fold, **options))  # type: ignore[arg-type]
        for depth, level in enumerate(LEVELS)
        for group in groups(table, ROLES, level)
        if group.refused is None
    ]


@few
@given(table=nested_tables(), seed=st.integers(0, 3), unit=st.sampled_from(["cell", "well"]))
def test_a_fold_is_of_the_level_its_name_says(table: pd.DataFrame, seed: int, unit: str) -> None:
    ids = nested_ids(table, LEVELS)
    for depth, identity, fold in all_folds(table, seed=seed, unit=unit):
        held_out = (ids[LEVELS[depth]] == identity).to_numpy()
        np.testing.assert_array_equal(fold.part == "test", held_out)
        train = fold.part == "train"
        assert train.any()
        assert not (train & held_out).any()
        if depth:
            parent = ids[LEVELS[depth - 1]]
            sibling = (parent == parent[held_out].iloc[0]).to_numpy() & ~held_out
            assert (train & sibling).any()


@few
@given(table=nested_tables(), seed=st.integers(0, 3))
def test_wells_never_straddle_a_held_out_group(table: pd.DataFrame, seed: int) -> None:
    well = table["series"] + "/" + table["plate"] + "/" + table["well"]
    for _, _, fold in all_folds(table, seed=seed):
        used = np.isin(fold.part, ["train", "val", "id_test"])
        test = fold.part == "test"
        assert not set(well[used]) & set(well[test])
        straddling = well.isin(well[test]).to_numpy() & ~test
        np.testing.assert_array_equal(fold.part == "unused", straddling)


@few
@given(table=nested_tables(), seed=st.integers(0, 3))
def test_every_row_is_in_exactly_one_part(table: pd.DataFrame, seed: int) -> None:
    folds = [fold for _, _, fold in all_folds(table, seed=seed)]
    for fold in [make_fold(table, ROLES, "iid", seed=seed), *folds]:
        rows = np.concatenate([fold.rows(part) for part in PARTS])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(table)))
        assert sum(fold.counts().values()) == len(table)


@few
@given(table=nested_tables(), data=st.data())
def test_labels_of_held_out_rows_decide_nothing(table: pd.DataFrame, data: st.DataObject) -> None:
    for _, _, fold in all_folds(table):
        mutated = table.copy()
        test = fold.rows("test")
        other = data.draw(st.lists(st.sampled_from(["a", "z", "", None]), min_size=len(test)))
        mutated.loc[test, "y"] = other[: len(test)]
        again = make_fold(mutated, ROLES, fold.name)
        np.testing.assert_array_equal(again.part, fold.part)


@few
@given(table=nested_tables(), seed=st.integers(0, 3))
def test_wells_are_whole_when_drawn_by_well(table: pd.DataFrame, seed: int) -> None:
    well = table["series"] + "/" + table["plate"] + "/" + table["well"]
    iid = make_fold(table, ROLES, "iid", unit="well", seed=seed, id_test_fraction=0.3)
    for fold in [iid, *(fold for _, _, fold in all_folds(table, unit="well", seed=seed))]:
        drawn = fold.part != "unused"
        assert pd.Series(fold.part[drawn]).groupby(well.to_numpy()[drawn]).nunique().max() == 1


@few
@given(table=nested_tables())
def test_groups_are_refused_for_a_reason_and_folds_of_them_too(table: pd.DataFrame) -> None:
    ids = nested_ids(table, LEVELS)
    for depth, level in enumerate(LEVELS):
        found = groups(table, ROLES, level)
        assert [group.identity for group in found] == sorted(set(ids[level]))
        for group in found:
            if group.refused is not None:
                with pytest.raises(
                    UserError, match=r"hold out a (coarser|group of another) level"
                ) as error:
                    make_fold(table, ROLES, group.fold)
                assert group.refused in str(error.value)
            elif depth:
                parents = ids[LEVELS[depth - 1]]
                assert ids[level][parents == group.identity.rpartition("/")[0]].nunique() > 1


@few
@given(table=nested_tables(), seed=st.integers(0, 3))
def test_a_split_depends_on_its_seed_alone(table: pd.DataFrame, seed: int) -> None:
    first, second = (make_fold(table, ROLES, "iid", seed=seed) for _ in range(2))
    np.testing.assert_array_equal(first.part, second.part)


def test_other_seeds_split_otherwise() -> None:
    table = table_of(200, y="a", plate="P", series="S", section="x", well="A01")
    parts = [make_fold(table, ROLES, "iid", seed=seed).part for seed in range(4)]
    assert all((parts[0] != other).any() for other in parts[1:])


def two_series() -> pd.DataFrame:
    rows = [("S1", "P1", "x"), ("S1", "P2", "x"), ("S2", "P1", "x")]
    table = pd.DataFrame(rows * 4, columns=list(LEVELS))
    return table.assign(y="a", well="A01")


def test_an_unknown_group_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"plate=S9/P1: no such group; plate has S1/P1, S1/P2, S2"):
        make_fold(two_series(), ROLES, "plate=S9/P1")


def test_an_unknown_level_is_answered_with_those_there_are() -> None:
    for name in ("plte=S1/P1", "S1/P1", "", "given=plate"):
        with pytest.raises(UserError, match="series, plate, section"):
            make_fold(two_series(), ROLES, name)
    with pytest.raises(UserError, match="series, plate, section"):
        groups(two_series(), ROLES, "plte")


def test_a_fold_without_a_sibling_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="S2 has no other group of plate to train on"):
        make_fold(two_series(), ROLES, "plate=S2/P1")


def test_the_only_group_of_the_outermost_level_is_refused() -> None:
    with pytest.raises(UserError, match="the only group of its level"):
        make_fold(two_series().assign(series="S1"), ROLES, "series=S1")


def test_sections_that_share_all_their_wells_are_refused() -> None:
    table = pd.DataFrame([("S1", "P1", s) for s in "xy"] * 3, columns=list(LEVELS))
    with pytest.raises(UserError, match="every sibling shares its wells"):
        make_fold(table.assign(y="a", well="A01"), ROLES, "section=S1/P1/x")


def test_a_fold_by_well_needs_a_well_column() -> None:
    roles = Roles(label="y", environment=("plate",), levels=LEVELS)
    with pytest.raises(UserError, match="no well column"):
        make_fold(two_series(), roles, "iid", unit="well")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UserError, match="'section'"):
        make_fold(two_series().drop(columns="section"), ROLES, "iid")


def test_rows_perhaps_of_the_held_out_group_are_not_trained_on() -> None:
    """A row whose series or plate is not known may belong to what is held out."""
    table = pd.concat([two_series()] * 3, ignore_index=True)
    table.loc[0, "plate"] = None  # of S1
    table.loc[1, "series"] = None  # of a P2
    table.loc[2, "series"] = None  # of a P1
    of_plate = make_fold(table, ROLES, "plate=S1/P1").part
    assert of_plate[0] == of_plate[2] == "unused"
    assert of_plate[1] in ("train", "val", "id_test")
    of_series = make_fold(table, ROLES, "series=S1").part
    assert of_series[0] == "test"
    assert of_series[1] == of_series[2] == "unused"


def test_a_sibling_whose_group_is_unknown_is_no_sibling() -> None:
    table = two_series()
    table.loc[table["plate"] == "P2", "plate"] = None
    with pytest.raises(UserError, match="S1 has no other group of plate to train on"):
        make_fold(table, ROLES, "plate=S1/P1")


@few
@given(table=nested_tables())
def test_shared_labels_are_those_of_both_parts(table: pd.DataFrame) -> None:
    label = coded(table["y"])
    folds = all_folds(table)
    assume(folds)
    for _, _, fold in folds:
        expected = set(table["y"][fold.rows("train")]) & set(table["y"][fold.rows("test")])
        assert {label.names[code] for code in shared_labels(label, fold, "test")} == expected


@few
@given(table=nested_tables(), data=st.data())
def test_an_environment_left_out_is_not_trained_on(
    table: pd.DataFrame, data: st.DataObject
) -> None:
    """Its rows are ood_val, no row of its wells trains, and the test is the same."""
    well = table["series"] + "/" + table["plate"] + "/" + table["well"]
    outer = [make_fold(table, ROLES, "iid"), *(fold for _, _, fold in all_folds(table))]
    for fold in outer:
        used = np.isin(fold.part, ["train", "val", "id_test"])
        name = data.draw(st.sampled_from(sorted(set(table["plate"][fold.part == "train"]))))
        inner = without_environment(table, ROLES, fold, name)
        left_out = used & (table["plate"] == name).to_numpy()
        np.testing.assert_array_equal(inner.part == "ood_val", left_out)
        still = np.isin(inner.part, ["train", "val", "id_test"])
        assert not set(well[still]) & set(well[left_out])
        np.testing.assert_array_equal(inner.part[still], fold.part[still])
        np.testing.assert_array_equal(inner.part[~used], fold.part[~used])


def test_a_row_that_may_be_of_the_environment_left_out_is_unused() -> None:
    table = table_of(40, plate=[*["P1", "P2", "P3", None] * 10], y=[*"ab"] * 20)
    roles = Roles(label="y", environment=("plate",))
    inner = without_environment(table, roles, make_fold(table, roles, "iid"), "P2")
    trained = table["plate"][np.isin(inner.part, ["train", "val"])]
    assert set(trained) == {"P1", "P3"}
    assert (inner.part[table["plate"].isna()] != "train").all()


def test_an_environment_that_training_lacks_is_named() -> None:
    table = table_of(40, plate=[*["P1", "P2"] * 20], y=[*"ab"] * 20)
    roles = Roles(label="y", environment=("plate",))
    with pytest.raises(UserError, match=r"without 'P3': no such training .* there are P1, P2"):
        without_environment(table, roles, make_fold(table, roles, "iid"), "P3")
