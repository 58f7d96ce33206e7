"""Grids whose series share few labels."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from deconfound.data.simulation.layout import LABEL, SERIES, grid_layout
from deconfound.data.simulation.sharing import sparsely_shared
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError


@pytest.mark.parametrize("seed", range(5))
def test_a_series_shares_at_most_a_third_of_its_labels_with_any_other(seed: int) -> None:
    places = grid_layout(16, 6, 2, 2, 2, seed, overlap=0.34)
    held = places.groupby(SERIES)[LABEL].agg(set)
    for one, other in combinations(held, 2):
        assert 0 in one & other
        assert len(one & other) <= len(one) / 3
        assert len(one & other) <= len(other) / 3
    of_label = places[places[LABEL] > 0].groupby(LABEL)[SERIES].nunique()
    assert (of_label == 2).all()
    assert len(of_label) == 15


def test_all_pairs_of_series_own_treatments_about_equally_often() -> None:
    held = sparsely_shared(np.arange(1, 31), 6, 1, 0.4, np.random.default_rng(0))
    assert [len(one) for one in held] == [10] * 6
    shared = [len(np.intersect1d(a, b)) for a, b in combinations(held, 2)]
    assert shared == [2] * 15


def test_without_a_limit_the_layout_is_that_of_before() -> None:
    dense = grid_layout(9, 4, 2, 2, 2, 0)
    held = dense.groupby(SERIES)[LABEL].agg(set)
    assert max(len(a & b) / len(a) for a, b in combinations(held, 2)) > 0.34


def test_an_overlap_that_cannot_be_kept_is_an_error() -> None:
    message = "--label-overlap 0.34: of 9 labels in 4 series two share .*; raise --series"
    with pytest.raises(UserError, match=message):
        grid_layout(9, 4, 2, 2, 2, 0, overlap=0.34)


@pytest.mark.parametrize("layout", ["lincs", "ops"])
def test_other_layouts_have_no_such_limit(tmp_path: Path, layout: str) -> None:
    config = SimulateConfig.model_validate({"layout": layout, "label_overlap": 0.5})
    with pytest.raises(UserError, match="it is of the grid alone"):
        simulate(tmp_path / "screen", config=config, quiet=True)
