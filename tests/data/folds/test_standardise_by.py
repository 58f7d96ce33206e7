"""What --standardise-by, -with and --standardise pose."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from deconfound.config import DataOptions
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError


def posed(screen: Screen, **options: Any) -> Problem:
    return pose(screen, DataOptions(**({"fold": "plate=S1/P1"} | options)))


def test_environment_is_the_word_for_its_columns(screen: Screen) -> None:
    problem = posed(screen, standardise_by="environment", environment=("series", "plate"))
    assert problem.standardise_by == ("series", "plate")
    assert problem.group is not None
    assert problem.group.names == problem.environment.names == ("S1/P2", "S2/P1", "S2/P2")
    assert np.array_equal(problem.group.codes, problem.environment.codes)
    assert (problem.group.codes[problem.fold.part == "test"] == -1).all()


def test_a_level_comes_with_the_levels_around_it(screen: Screen) -> None:
    problem = posed(screen, standardise_by="plate")
    assert problem.standardise_by == ("series", "plate")
    assert posed(screen, standardise_by="well").standardise_by == ("well",)
    assert problem.reference is None


def test_nothing_changes_without(screen: Screen) -> None:
    problem = posed(screen)
    assert (problem.standardise_by, problem.group, problem.reference) == ((), None, None)
    assert (
        DataOptions()
        .model_dump()
        .keys()
        .isdisjoint({"standardise_by", "standardise_with", "standardise"})
    )


def test_controls_are_marked_rows_or_labels_named(screen: Screen) -> None:
    asked = {"standardise_by": "plate", "standardise_with": "controls"}
    problem = posed(screen, controls=("c1",), **asked)
    assert problem.reference is not None
    assert np.array_equal(problem.reference, screen.table["compound"] == "c1")
    marked = screen.table.assign(Metadata_Control_Type=np.resize(["negcon", "treatment"], 96))
    problem = posed(dataclasses.replace(screen, table=marked), **asked)
    assert problem.reference is not None
    assert np.array_equal(problem.reference, np.arange(96) % 2 == 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"standardise_by": "plat"}, "no column 'plat'; did you mean 'plate'"),
        ({"standardise": "robust"}, "--standardise robust belongs to --standardise-by; add it"),
        ({"standardise_with": "controls"}, "--standardise-with controls belongs to --standardise-"),
        (
            {"standardise_by": "plate", "standardise_with": "controls"},
            "no controls, .*; mark them, or choose --standardise-with all",
        ),
        (
            {"standardise_by": "plate", "transform": "percentile", "percentile_by": "plate"},
            "--standardise-by plate: the percentiles of plate make its groups alike already",
        ),
    ],
)
def test_refusals(screen: Screen, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        posed(screen, **options)
    assert "\n" not in str(error.value)
