import numpy as np
import pytest

from deconfound.evaluation.sampling import noted, standard_errors
from deconfound.metrics.score import Score


def test_the_error_of_a_mean_is_that_of_the_formula() -> None:
    values = np.random.default_rng(0).normal(3, 2, (4_000, 1))
    (error,) = standard_errors(lambda rows: [Score(float(rows.mean()), len(rows))], values, 0)
    assert error == pytest.approx(values.std() / 4_000**0.5, rel=0.2)


def test_the_error_is_of_the_seed_alone_and_stands_in_the_note() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 1))

    def median(rows: np.ndarray) -> list[Score]:
        return [Score(float(np.median(rows)), len(rows))]

    first, again, other = (standard_errors(median, values, seed) for seed in (0, 0, 1))
    assert first == again != other
    made = noted(Score(1.0, 50, "only one label"), (50, 90), (100, 200), 0.123)
    assert made.note == "only one label; 50 of 90 rows among 100 of 200, standard error 0.12"
    assert noted(Score(1.0, 50), (50, 90), (100, 200), float("nan")).note == (
        "50 of 90 rows among 100 of 200"
    )
