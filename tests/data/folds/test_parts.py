"""Random and given parts: fractions within strata, seeds, and the split column."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconfound.data.folds.fold import make_fold
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    val=st.floats(0.05, 0.25),
    id_test=st.floats(0.0, 0.25),
    seed=st.integers(0, 5),
)
def test_fractions_are_honoured_within_every_stratum(
    sizes: list[int], val: float, id_test: float, seed: int
) -> None:
    table = pd.DataFrame(
        {"y": np.repeat([f"c{k}" for k in range(len(sizes))], sizes), "plate": "P"}
    )
    fold = make_fold(
        table, Roles(label="y", environment=("plate",)), "iid",
        val_fraction=val, id_test_fraction=id_test, seed=seed,
    )  # fmt: skip
    for number, size in enumerate(sizes):
        part = fold.part[table["y"] == f"c{number}"]
        thin = size < 1 / min(val, id_test or val)
        most = (1 if thin else 0.5) + 1e-9
        assert abs((part == "test").sum() - id_test * size) <= most
        assert abs(np.isin(part, ["test", "val"]).sum() - (id_test + val) * size) <= most
        assert (part == "train").any()


@pytest.mark.parametrize("cells", [3, 5, 7])
def test_labels_spread_thin_over_environments_are_in_every_part(cells: int) -> None:
    """A pooled screen: a few cells of each gene in each well, too few for two tenths."""
    genes, wells = 20, 34
    table = pd.DataFrame(
        {
            "y": np.repeat([f"g{k}" for k in range(genes)], wells * cells),
            "plate": np.tile(np.arange(wells), genes * cells),
        }
    )
    part = make_fold(table, Roles(label="y", environment=("plate",)), "iid").part
    for name in ("test", "val"):
        assert abs((part == name).mean() - 0.1) < 0.02
        assert table["y"][part == name].nunique() == genes


def test_a_thin_stratum_is_drawn_whatever_the_others_hold() -> None:
    table = pd.DataFrame(
        {"y": [f"g{n % 5}" for n in range(300)], "plate": [f"P{n // 20}" for n in range(300)]}
    )
    roles = Roles(label="y", environment=("plate",))
    other = table.copy()
    other.loc[280:, "y"] = "g0"
    first, second = (make_fold(one, roles, "iid").part for one in (table, other))
    np.testing.assert_array_equal(first[:280], second[:280])
    assert (first[280:] != second[280:]).any()


def test_an_iid_test_needs_no_levels_and_no_label() -> None:
    fold = make_fold(pd.DataFrame({"e": ["p"] * 50}), Roles(environment=("e",)), "iid")
    counts = {part: count for part, count in fold.counts().items() if count}
    assert counts == {"train": 40, "val": 5, "test": 5}


def test_a_given_split_is_taken_as_it_is() -> None:
    values = ["train", "val", "id_test", "test", "unused", None]
    table = pd.DataFrame({"y": list("abcdef"), "split": values})
    fold = make_fold(table, Roles(label="y", split="split"), "given")
    assert fold.name == "given"
    assert fold.part.tolist() == ["train", "val", "id_test", "test", "unused", "unused"]


def test_a_given_split_with_another_word_is_refused() -> None:
    table = pd.DataFrame({"y": ["a", "b"], "split": ["train", "validation"]})
    with pytest.raises(UserError, match=r"'split': value 'validation'; expected train, val"):
        make_fold(table, Roles(label="y", split="split"), "given")


def test_a_given_split_needs_a_column() -> None:
    with pytest.raises(UserError, match="no split column"):
        make_fold(pd.DataFrame({"y": ["a"]}), Roles(label="y"), "given")
