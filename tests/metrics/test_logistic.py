"""The minimum, against scikit-learn's Newton solver, which inverts the whole Hessian."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from deconfound.metrics.logistic import logistic_regression


def classes_of(count: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(count)
    target = 3 + generator.integers(0, count, rows)
    few = generator.normal(size=(count + 3, 6))[target] + generator.normal(size=(rows, 6))
    return few @ generator.normal(size=(6, 12)) + 0.01 * generator.normal(size=(rows, 12)), target


def objective(
    features: np.ndarray, target: np.ndarray, weights: np.ndarray, intercept: np.ndarray
) -> float:
    """Σ cross-entropy + ½|W|² of three classes or more."""
    _, code = np.unique(target, return_inverse=True)
    logits = log_softmax(features @ weights.T + intercept, axis=1)
    return float(0.5 * (weights**2).sum() - logits[np.arange(len(code)), code].sum())


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("units", [np.ones(12), np.logspace(-3, 3, 12)])
def test_the_minimum_is_that_of_newtons_method(count: int, units: np.ndarray) -> None:
    features, target = classes_of(count)
    features = features * units + 5
    found = logistic_regression(features, target, 5_000)
    assert found.converged
    oracle = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(features, target)
    logits = features @ found.coefficients.T + found.intercept
    expected = oracle.decision_function(features).reshape(logits.shape)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    assert found.coefficients.shape == oracle.coef_.shape


def test_more_features_than_rows() -> None:
    features, target = classes_of(3, 30)
    wide = np.hstack([features, 10 * features, np.zeros((30, 20))])
    found = logistic_regression(wide, target, 5_000)
    oracle = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(wide, target)
    assert found.converged
    logits = wide @ found.coefficients.T + found.intercept
    np.testing.assert_allclose(logits, oracle.decision_function(wide), atol=1e-3)


def test_units_from_a_millionth_to_a_million() -> None:
    """Newton's method stops short here: nothing near the minimum found lies lower."""
    features, target = classes_of(4)
    features = features * np.logspace(-6, 6, 12)
    found = logistic_regression(features, target, 5_000)
    assert found.converged
    least = objective(features, target, found.coefficients, found.intercept)
    generator = np.random.default_rng(0)
    for size in (1e-4, 1e-3, 1e-2, 0.1):
        aside = size * generator.normal(size=found.coefficients.shape) / features.std(axis=0)
        for weights in (found.coefficients + aside, found.coefficients * (1 + size)):
            assert objective(features, target, weights, found.intercept) > least


def test_an_unfinished_fit_says_so() -> None:
    features, target = classes_of(4)
    found = logistic_regression(features, target, 3)
    assert not found.converged
    assert found.iterations == 3
