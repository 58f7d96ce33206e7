"""Reading where imputed cells came from, of imputers for which the answer is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconfound.config import DataOptions
from deconfound.counterfactuals.cells import into_one, probed_part
from deconfound.counterfactuals.shown import RUN, shown_images
from deconfound.counterfactuals.source_probe import source_scores
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.evaluation.scores import ALONE, EXACT, MOMENTS
from deconfound.metrics.score import Score
from deconfound.runtime.progress import Progress

Imputes = Callable[..., np.ndarray]
LEVEL = "Metadata_Series"


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    config = SimulateConfig(
        cells=900, labels=2, series=3, plates=2, sections=1, wells=4, size=24, seed=2,
        plate_spread=0.8,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("simulated") / "screen"
    return simulate(out, config=config, threads=1, quiet=True)


@pytest.fixture(scope="module")
def problem(screen: Screen) -> Problem:
    return pose(screen, DataOptions(fold="Metadata_Plate=S1/P1", id_test_fraction=0.5))


def read(screen: Screen, problem: Problem, imputes: Imputes, seed: int = 0) -> dict:
    """Scores by imputer, then by metric."""
    drawn = into_one(screen, problem, 1000, seed)
    shown = shown_images(screen, imputes, drawn, 1)
    with Progress("impute", len(drawn.rows), "images", quiet=True) as progress:
        found = source_scores(screen, problem, drawn, shown, seed, progress)
    return {
        name: {one.metric.removeprefix("imputation_source_"): one.score for one in scores}
        for name, scores in found.items()
    }


def left_alone(rows: np.ndarray, source: np.ndarray, *_: np.ndarray) -> np.ndarray:
    del rows
    return source


@pytest.fixture(scope="module")
def scores(screen: Screen, problem: Problem) -> dict[str, dict[str, Score]]:
    return read(screen, problem, left_alone)


def test_cells_left_alone_name_their_source_and_cells_rendered_exactly_do_not(
    scores: dict[str, dict[str, Score]],
) -> None:
    assert set(scores) == {RUN, MOMENTS, ALONE, EXACT}
    assert scores[ALONE]["environment"].value > 0.9
    assert scores[ALONE]["level"].value > 0.95
    assert scores[EXACT]["environment"].value < scores[EXACT]["environment_chance"].value + 0.12
    assert scores[EXACT]["level"].value < scores[EXACT]["level_chance"].value + 0.15
    assert scores[MOMENTS]["environment"].value > scores[EXACT]["environment"].value + 0.15
    assert scores[MOMENTS]["level"].value > scores[EXACT]["level"].value + 0.15
    assert scores[RUN] == scores[ALONE]


def test_a_score_names_what_was_read_and_where_the_cells_were_imputed_to(
    screen: Screen, problem: Problem, scores: dict[str, dict[str, Score]]
) -> None:
    drawn = into_one(screen, problem, 1000, 0)
    (target,) = set(drawn.rendering)
    assert scores[RUN]["level"].note == f"{LEVEL} read of cells imputed into {target}"
    columns = f"{LEVEL} / Metadata_Plate / Metadata_Section"
    assert scores[RUN]["environment"].note == f"{columns} read of cells imputed into {target}"
    assert scores[RUN]["environment"].n == len(drawn.rows)
    assert scores[RUN]["environment_chance"].value == 1 / 4


def test_all_cells_go_into_one_environment_other_than_their_own(
    screen: Screen, problem: Problem
) -> None:
    drawn = into_one(screen, problem, 1000, 0, style_images=3)
    code = problem.environment.codes
    (target,) = set(drawn.environment)
    assert set(code[drawn.style.ravel()]) == {target}
    assert np.isin(drawn.style, problem.fold.rows("train")).all()
    id_test = problem.fold.rows("id_test")
    assert set(drawn.rows) == set(id_test[code[id_test] != target])
    assert set(drawn.rendering) == {problem.environment.names[target]}
    few = into_one(screen, problem, 30, 0)
    assert len(few.rows) == 30
    assert set(few.environment) == {target}
    targets = {int(into_one(screen, problem, 1, seed).environment[0]) for seed in range(20)}
    assert targets == set(range(5))


def test_training_cells_are_asked_where_nothing_else_is_in_distribution(screen: Screen) -> None:
    problem = pose(screen, DataOptions(fold="iid"))
    assert probed_part(problem) == "train"
    drawn = into_one(screen, problem, 50, 0)
    assert np.isin(drawn.rows, problem.fold.rows("train")).all()


def test_a_level_that_is_the_environment_is_read_once(screen: Screen) -> None:
    options = DataOptions(fold="Metadata_Series=S1", environment=(LEVEL,), id_test_fraction=0.5)
    found = read(screen, pose(screen, options), left_alone)
    assert set(found[RUN]) == {"environment", "environment_chance"}
    assert found[RUN]["environment"].note.endswith("fewer than two sources to tell apart")


def test_no_cell_of_another_environment_leaves_the_scores_undefined(tmp_path: Path) -> None:
    config = SimulateConfig(cells=60, labels=2, series=2, plates=1, sections=1, size=24, seed=2)
    screen = simulate(tmp_path / "screen", config=config, threads=1, quiet=True)
    problem = pose(screen, DataOptions(fold="Metadata_Series=S1"))
    for scores in read(screen, problem, left_alone).values():
        for score in scores.values():
            assert np.isnan(score.value)
            assert score.n == 0
            assert "fewer than two sources" in score.note
