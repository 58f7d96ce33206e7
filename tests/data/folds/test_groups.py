"""How often the table is passed over to find the groups of a level and to build their folds."""

from collections import Counter

import pandas as pd
import pytest

import deconfound.data.folds.groups as module
from deconfound.data.folds.fold import make_fold
from deconfound.data.folds.groups import Group, Level, groups
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

ROLES = Roles(label="y", environment=("plate",), levels=("series", "plate"), well="well")


def plates(count: int) -> pd.DataFrame:
    """A series of `count` plates, each of 4 wells."""
    rows = [("S1", f"P{n}", f"A{well}") for n in range(count) for well in range(4)]
    table = pd.DataFrame(rows, columns=["series", "plate", "well"])
    return table.assign(y=["a", "b"] * (len(table) // 2))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Passes over the text of the table, and over its codes for the leaks of one group."""
    found: Counter[str] = Counter()
    joined, numbered, separated = module.joined, module._numbered, Level.separated

    def count_joined(*given: object) -> pd.Series:
        found["text"] += 1
        return joined(*given)  # type: ignore[arg-type]

    def count_numbered(values: pd.Series) -> object:
        found["text"] += 1
        return numbered(values)

    def count_separated(level: Level, group: Group) -> object:
        found["leaks"] += 1
        return separated(level, group)

    monkeypatch.setattr(module, "joined", count_joined)
    monkeypatch.setattr(module, "_numbered", count_numbered)
    monkeypatch.setattr(Level, "separated", count_separated)
    return found


def test_the_passes_do_not_grow_with_the_groups(passes: Counter[str]) -> None:
    needed = []
    for count in (3, 30):
        passes.clear()
        assert len(groups(plates(count), ROLES, "plate")) == count
        needed.append(passes.copy())
    assert needed[0] == needed[1]
    assert not needed[0]["leaks"]


def test_a_fold_works_out_the_leaks_of_its_group_alone(passes: Counter[str]) -> None:
    for count in (3, 30):
        passes.clear()
        make_fold(plates(count), ROLES, "plate=S1/P2")
        assert passes["leaks"] == 1


def test_a_sibling_that_shares_some_wells_is_enough() -> None:
    """Each refusal where one more row of a sibling would lift it."""
    table = pd.DataFrame(
        [("S1", "P1", "x", "A1"), ("S1", "P1", "y", "A1"), ("S1", "P1", "y", "A2")],
        columns=["series", "plate", "section", "well"],
    )
    roles = Roles(levels=("series", "plate", "section"), well="well")
    shared = "every sibling shares its wells"
    assert [one.refused for one in groups(table, roles, "section")] == [None, shared]
    without = table.assign(well=[None, "A1", "A2"])
    assert [one.refused for one in groups(without, roles, "section")] == [None, None]


def test_no_group_is_known_where_a_column_is_empty() -> None:
    table = plates(2).assign(plate=None)
    assert groups(table, ROLES, "plate") == []
    with pytest.raises(UserError, match="no such group"):
        make_fold(table, ROLES, "plate=S1/P1")
