import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from deconfound.metrics.accuracy import (
    accuracy,
    accuracy_chance,
    class_coverage,
    macro_f1,
    macro_f1_among,
    macro_f1_chance,
    seen_in_training,
)


def predictions(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Six unbalanced classes, right about half of the time."""
    generator = np.random.default_rng(0)
    truth = generator.choice(6, rows, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
    noise = generator.integers(0, 6, rows)
    return truth, np.where(generator.random(rows) < 0.5, truth, noise)


def test_equal_scikit_learn_when_all_classes_are_shared() -> None:
    truth, predicted = predictions()
    seen = seen_in_training(truth, np.arange(6))
    assert accuracy(truth, predicted, seen) == (accuracy_score(truth, predicted), 400, "")
    expected = f1_score(truth, predicted, average="macro")
    assert macro_f1(truth, predicted, seen).value == pytest.approx(expected, abs=1e-12)


def test_classes_that_training_lacks_are_left_out() -> None:
    truth, predicted = predictions()
    predicted = np.where(predicted >= 4, 0, predicted)
    seen = seen_in_training(truth, np.array([0, 1, 2, 3]))
    kept = truth < 4
    expected = f1_score(truth[kept], predicted[kept], average="macro")
    score = macro_f1(truth, predicted, seen)
    assert score.value == pytest.approx(expected, abs=1e-12)
    assert score.n == kept.sum()
    assert score.note == f"4 of 6 test classes are in training; {(~kept).sum()} rows are not scored"
    assert accuracy(truth, predicted, seen).value == accuracy_score(truth[kept], predicted[kept])
    assert class_coverage(truth, seen).value == pytest.approx(4 / 6)


def test_classes_that_the_test_lacks_do_not_score_zero() -> None:
    truth = np.array([0, 0, 1, 1])
    seen = seen_in_training(truth, np.arange(9))
    assert macro_f1(truth, truth, seen).value == 1.0
    wrong_class_absent_from_test = np.array([0, 0, 1, 7])
    assert macro_f1(truth, wrong_class_absent_from_test, seen).value == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert class_coverage(truth, seen).value == 1.0


def test_rows_without_a_label_take_no_part() -> None:
    truth, predicted = predictions()
    hidden = truth.copy()
    hidden[::3] = -1
    seen = seen_in_training(hidden, np.array([-1, 0, 1, 2, 3, 4, 5]))
    kept = hidden >= 0
    assert accuracy(hidden, predicted, seen) == (
        accuracy_score(truth[kept], predicted[kept]),
        kept.sum(),
        "",
    )


def test_pooled_over_folds_by_joining_the_arrays() -> None:
    truth = np.array([0, 0, 1, 2, 0, 1, 1, 2])
    predicted = np.array([0, 1, 1, 0, 0, 1, 0, 2])
    first = seen_in_training(truth[:4], np.array([0, 1]))
    second = seen_in_training(truth[4:], np.array([0, 1, 2]))
    seen = np.concatenate([first, second])
    pooled = macro_f1(truth, predicted, seen)
    kept = [0, 1, 2, 4, 5, 6, 7]
    expected = f1_score(truth[kept], predicted[kept], average="macro")
    assert pooled.value == pytest.approx(expected, abs=1e-12)
    assert pooled.n == 7


@pytest.mark.parametrize(
    "metric", [accuracy, macro_f1, accuracy_chance, macro_f1_chance], ids=lambda f: f.__name__
)
def test_nothing_to_score_is_nan_with_the_reason(metric) -> None:
    truth = np.array([3, 3])
    score = metric(truth, truth, seen_in_training(truth, np.array([0, 1])))
    assert math.isnan(score.value)
    assert score.n == 0
    assert score.note == "0 of 1 test classes are in training; 2 rows are not scored"
    unlabelled = metric(np.array([-1]), np.array([0]), np.array([False]))
    assert math.isnan(unlabelled.value)
    assert unlabelled.note == "no test row has a label"


def test_chance_is_the_mean_over_shuffled_predictions() -> None:
    truth, predicted = predictions()
    seen = seen_in_training(truth, np.arange(5))
    generator = np.random.default_rng(1)
    shuffled = []
    for _ in range(400):
        dealt = predicted.copy()
        dealt[seen] = generator.permutation(predicted[seen])
        shuffled.append((accuracy(truth, dealt, seen).value, macro_f1(truth, dealt, seen).value))
    mean = np.mean(shuffled, axis=0)
    assert accuracy_chance(truth, predicted, seen).value == pytest.approx(mean[0], abs=0.004)
    assert macro_f1_chance(truth, predicted, seen).value == pytest.approx(mean[1], abs=0.004)


def test_chance_of_balanced_and_of_constant_predictions() -> None:
    truth = np.repeat(np.arange(9), 20)
    seen = seen_in_training(truth, np.arange(9))
    assert accuracy_chance(truth, np.roll(truth, 5), seen).value == pytest.approx(1 / 9)
    assert macro_f1_chance(truth, np.roll(truth, 5), seen).value == pytest.approx(1 / 9)
    constant = np.zeros_like(truth)
    assert accuracy_chance(truth, constant, seen).value == accuracy(truth, constant, seen).value
    assert macro_f1_chance(truth, constant, seen).value == pytest.approx(
        macro_f1(truth, constant, seen).value
    )


def test_macro_f1_among_is_the_mean_of_the_f1_that_the_classes_have_in_the_whole() -> None:
    truth, predicted = predictions()
    seen = seen_in_training(truth, np.arange(5))
    among = np.isin(truth, [1, 4])
    of_class = f1_score(truth[seen], predicted[seen], average=None, labels=range(5))
    score, chance = macro_f1_among(truth, predicted, seen, among)
    assert score.value == pytest.approx(of_class[[1, 4]].mean(), abs=1e-12)
    assert score.n == among.sum()
    other, other_chance = macro_f1_among(truth, predicted, seen, ~among)
    whole = macro_f1(truth, predicted, seen).value
    assert (2 * score.value + 3 * other.value) / 5 == pytest.approx(whole, abs=1e-12)
    by_chance = macro_f1_chance(truth, predicted, seen).value
    assert (2 * chance.value + 3 * other_chance.value) / 5 == pytest.approx(by_chance, abs=1e-12)


def test_macro_f1_among_no_class_is_undefined_and_says_why() -> None:
    truth, predicted = predictions()
    seen = seen_in_training(truth, np.arange(6))
    for score in macro_f1_among(truth, predicted, seen, np.zeros(len(truth), dtype=bool)):
        assert math.isnan(score.value)
        assert (score.n, score.note) == (0, "no test class is of this kind")
