import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deconfound.errors import UserError
from deconfound.metrics.probe import _in_proportion, batch_prediction, linear_probe


def screen(classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(11)
    target = generator.integers(0, classes, 300)
    embedding = generator.normal(size=(classes, 10))[target] + generator.normal(size=(300, 10))
    embedding = 50 + embedding * np.logspace(-3, 3, 10)
    is_train = generator.random(300) < 0.6
    return embedding, target, is_train, ~is_train


@pytest.mark.parametrize("classes", [2, 4])
def test_equals_a_scikit_learn_pipeline(classes: int) -> None:
    embedding, target, train, test = screen(classes)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-9))
    expected = oracle.fit(embedding[train], target[train]).predict(embedding[test])
    probe = linear_probe(embedding, target, train, test)
    np.testing.assert_array_equal(probe.predicted, expected)
    assert probe.accuracy == (accuracy_score(target[test], expected), test.sum(), "")
    expected_f1 = f1_score(target[test], expected, average="macro")
    assert probe.macro_f1.value == pytest.approx(expected_f1, abs=1e-12)
    logits = embedding[test] @ probe.coefficients.T + probe.intercept
    reference = oracle.decision_function(embedding[test]).reshape(logits.shape)
    np.testing.assert_allclose(logits, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_answers_in_parts_are_those_of_all_rows(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, target, train, test = screen(classes)
    expected = linear_probe(embedding, target, train, test)
    monkeypatch.setattr("deconfound.metrics.probe.LOGITS", 28)
    found = linear_probe(embedding, target, train, test)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    assert found.macro_f1 == expected.macro_f1


def test_held_out_rows_are_never_read() -> None:
    embedding, target, train, test = screen()
    before = linear_probe(embedding, target, train, test)
    mutated, labels = embedding.copy(), target.copy()
    mutated[test] = 1e6 * np.random.default_rng(0).normal(size=(test.sum(), 10))
    labels[test] = 3 - labels[test]
    after = linear_probe(mutated, labels, train, test)
    np.testing.assert_array_equal(before.coefficients, after.coefficients)
    np.testing.assert_array_equal(before.intercept, after.intercept)
    assert before.accuracy != after.accuracy


def test_rows_of_neither_part_are_never_read() -> None:
    embedding, target, train, test = screen()
    train = train & (np.arange(300) % 2 == 0)
    mutated = embedding.copy()
    mutated[~train & ~test] = 0
    before, after = (linear_probe(array, target, train, test) for array in (embedding, mutated))
    np.testing.assert_array_equal(before.coefficients, after.coefficients)
    assert before.accuracy == after.accuracy


def test_thinning_is_noted_seeded_and_sized() -> None:
    embedding, target, train, test = screen()
    probes = [
        linear_probe(embedding, target, train, test, seed=seed, max_train_rows=80)
        for seed in (0, 0, 1)
    ]
    note = f"fitted on 80 of {train.sum()} training rows"
    assert probes[0].note == probes[0].macro_f1.note == probes[0].accuracy.note == note
    np.testing.assert_array_equal(probes[0].coefficients, probes[1].coefficients)
    assert (probes[0].coefficients != probes[2].coefficients).any()


def test_an_unfinished_fit_is_no_score() -> None:
    embedding, target, train, test = screen()
    probe = linear_probe(embedding, target, train, test, max_iterations=2)
    reason = "the probe had not converged after 2 iterations"
    for score in (probe.accuracy, probe.macro_f1, batch_prediction(embedding, target, 0, 300, 2)):
        assert math.isnan(score.value)
        assert score.note == reason
    assert len(probe.classes) == len(probe.predicted) == 0


def profiles(rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Like CellProfiler's: 300 features made of 40, in units from 1e-3 to 1e5, in 7 classes."""
    generator = np.random.default_rng(3)
    target = generator.integers(0, 7, rows)
    few = 0.9 * generator.normal(size=(7, 40))[target] + generator.normal(size=(rows, 40))
    many = few @ generator.normal(size=(40, 300)) + 0.05 * generator.normal(size=(rows, 300))
    units = 10 ** generator.uniform(-3, 5, 300)
    is_train = generator.random(rows) < 0.6
    return (units * (many + 9)).astype(np.float32), target, is_train, ~is_train


def test_a_probe_of_correlated_profiles_is_that_of_a_fit_to_the_end() -> None:
    """Default solvers stop early: the fit went wrong where features are correlated."""
    embedding, target, train, test = profiles()
    oracle = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cg", tol=1e-9))
    oracle.fit(embedding[train].astype(float), target[train])
    expected = oracle.predict(embedding[test].astype(float))
    probe = linear_probe(embedding, target, train, test)
    np.testing.assert_array_equal(probe.predicted, expected)
    assert probe.accuracy == (accuracy_score(target[test], expected), test.sum(), "")
    logits = embedding[test] @ probe.coefficients.T + probe.intercept
    reference = oracle.decision_function(embedding[test].astype(float))
    np.testing.assert_allclose(logits, reference, atol=1e-3)


def test_a_column_of_one_rounded_value_is_not_read() -> None:
    embedding, target, train, test = profiles()
    noise = np.random.default_rng(0).normal(size=(len(embedding), 1))
    rounded = (1_000 + 1e-8 * noise).astype(np.float32) + np.float32(6e-5) * (noise > 1)
    rounded[test] = 3_000
    widened = np.concatenate([embedding, rounded], axis=1)
    plain, wide = (linear_probe(array, target, train, test) for array in (embedding, widened))
    np.testing.assert_array_equal(plain.predicted, wide.predicted)
    assert (wide.coefficients[:, -1] == 0).all()


def test_classes_of_one_part_only_are_not_scored() -> None:
    embedding, target, train, test = screen()
    only_train = np.where(test & (target == 3), 2, target)
    probe = linear_probe(embedding, only_train, train, test)
    seen_f1 = f1_score(only_train[test], probe.predicted, labels=[0, 1, 2], average="macro")
    assert probe.macro_f1.value == pytest.approx(seen_f1, abs=1e-12)
    only_test = np.where(train & (target == 3), 2, target)
    probe = linear_probe(embedding, only_test, train, test)
    assert probe.macro_f1.note.startswith("3 of 4 test classes are in training")
    assert probe.macro_f1.n == (test & (target < 3)).sum()


def test_missing_targets_take_no_part() -> None:
    embedding, target, train, test = screen()
    hidden = np.where(np.arange(300) % 5 == 0, -1, target)
    probe = linear_probe(embedding, hidden, train, test)
    oracle = linear_probe(embedding, target, train & (hidden >= 0), test & (hidden >= 0))
    np.testing.assert_array_equal(probe.coefficients, oracle.coefficients)
    assert probe.accuracy == oracle.accuracy
    assert len(probe.predicted) == test.sum()


def test_constant_columns_do_no_harm() -> None:
    embedding, target, train, test = screen()
    widened = np.concatenate([embedding, np.full((300, 1), 0.1)], axis=1)
    plain, wide = (linear_probe(array, target, train, test) for array in (embedding, widened))
    np.testing.assert_array_equal(plain.predicted, wide.predicted)


def test_undefined_says_why() -> None:
    embedding, target, train, test = screen()
    single = linear_probe(embedding, np.zeros(300, int), train, test)
    assert math.isnan(single.macro_f1.value) and math.isnan(single.accuracy.value)
    assert single.accuracy.note == single.note == "training rows hold fewer than two classes"
    assert len(single.classes) == len(single.predicted) == single.coefficients.size == 0
    disjoint = linear_probe(embedding, np.where(test, target + 10, target), train, test)
    assert math.isnan(disjoint.macro_f1.value)
    assert disjoint.macro_f1.note.startswith("0 of 4 test classes are in training")
    nobody = linear_probe(embedding, target, train, np.zeros(300, bool))
    assert nobody.macro_f1.note == "no test row has a label"


def test_refuses_a_row_in_both_parts() -> None:
    embedding, target, train, _ = screen()
    row = np.flatnonzero(train)[0]
    with pytest.raises(UserError, match=f"row {row} is both training and test"):
        linear_probe(embedding, target, train, train)


def moved(rows: int, environments: int = 5, shift: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    environment = generator.integers(0, environments, rows)
    centres = shift * generator.normal(size=(environments, 8))
    return centres[environment] + generator.normal(size=(rows, 8)), environment


@pytest.mark.parametrize("environments", [2, 5])
def test_batch_prediction_is_the_papers_probe(environments: int) -> None:
    """Library defaults, 60/40; columns are standardised for two environments alone."""
    embedding, environment = moved(800, environments, 0.3)
    embedding *= np.logspace(-2, 0, 8)
    found = batch_prediction(embedding, environment, seed=1)
    assert found.n == 320
    scores = []
    for seed in range(6):  # other splits by scikit-learn: the same within their spread
        rows = np.random.default_rng(seed).permutation(800)
        train, test = rows[:480], rows[480:]
        plain = LogisticRegression()
        model = make_pipeline(StandardScaler(), plain) if environments == 2 else plain
        predicted = model.fit(embedding[train], environment[train]).predict(embedding[test])
        scores.append(f1_score(environment[test], predicted, average="macro"))
    assert abs(found.value - np.mean(scores)) < 3 * np.std(scores)
    assert found == batch_prediction(embedding, environment, seed=1)
    assert found != batch_prediction(embedding, environment, seed=2)
    other = make_pipeline(StandardScaler(), LogisticRegression())
    if environments == 5:  # the scales differ, so that standardising would show
        standardised = other.fit(embedding[train], environment[train]).predict(embedding[test])
        assert (standardised != predicted).any()


def test_batch_prediction_is_thinned_in_proportion() -> None:
    embedding, environment = moved(30_000)
    environment[:3] = 5  # rare
    environment[-500:] = -1
    whole = batch_prediction(embedding, environment)
    thinned = batch_prediction(embedding, environment, max_rows=5_000)
    assert whole.note == ""
    assert thinned.note.endswith(" of 29500 rows")
    assert 4_990 <= int(thinned.note.split()[0]) <= 5_000
    assert abs(thinned.value - whole.value) < 0.05
    kept = _in_proportion(environment[environment >= 0], 5_000)
    counts = np.bincount(environment[environment >= 0][kept])
    expected = np.bincount(environment[environment >= 0]) * 5_000 / 29_500
    np.testing.assert_allclose(counts, np.maximum(expected, 1), atol=1)


def test_batch_prediction_of_one_environment_is_undefined() -> None:
    embedding, environment = moved(40)
    for codes in (environment * 0, environment * 0 - 1):
        score = batch_prediction(embedding, codes)
        assert math.isnan(score.value)
        assert score.note == "fewer than two environments"
