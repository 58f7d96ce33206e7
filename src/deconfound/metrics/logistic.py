"""Multinomial logistic regression with an L2 penalty, solved until its answers stand still."""

from typing import NamedTuple

import numpy as np

from deconfound.arrays import AnyCodes, Doubles

TOLERANCE = 5e-7
"""Largest entry of the gradient of a fit that has converged, over √N: the loss is summed over N
rows, whose rounding grows as N and the gradient's as √N."""
CURVATURE = 0.1
"""Share of the loss's curvature at zero that coordinates are scaled by: it is lower at the end."""
MEMORY = 20
"""Steps that L-BFGS keeps."""


class Logistic(NamedTuple):
    """A fit: logits of a row x are `coefficients @ x + intercept`.

    (C, D) and (C,) for C classes in the order of their codes; (1, D) and (1,), the logit of the
    second class, for two.
    """

    coefficients: Doubles
    intercept: Doubles
    converged: bool
    iterations: int


def logistic_regression(features: Doubles, target: AnyCodes, max_iterations: int) -> Logistic:
    """Minimise Σ cross-entropy + ½|W|² over rows (N, D) of classes (N,), intercepts unpenalised.

    That is scikit-learn's `LogisticRegression` with C = 1, whose solvers need thousands of
    iterations, or never end, where features are correlated or differ in scale. Here L-BFGS
    (Liu & Nocedal 1989, by SciPy) moves along the principal directions of the features, each scaled
    by what the loss and the penalty curve there; the minimum is the same one. Converged is a fit
    whose gradient has no entry above 5e-7 √N in these coordinates. Two classes or more, finite
    features of any scale; raises no errors of its own.
    """
    from scipy.optimize import minimize

    _, code = np.unique(target, return_inverse=True)
    rows, classes = len(code), int(code.max()) + 1
    mean = features.mean(axis=0)
    centred = features - mean
    directions, scale = _coordinates(centred, CURVATURE / classes)
    along = directions * scale
    placed = centred @ along
    # One logit of two classes is the difference of two, each half of it: half the penalty.
    penalty = (2.0 if classes == 2 else 1.0) * scale[:, None] ** 2
    unit = (CURVATURE / classes * rows) ** -0.5
    size = len(scale) * classes
    every = np.arange(rows)
    tolerance = TOLERANCE * rows**0.5

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        weights, intercept = flat[:size].reshape(-1, classes), flat[size:] * unit
        logits = placed @ weights + intercept
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[every, code]
        share = np.exp(logits, out=logits)
        total = share.sum(axis=1, keepdims=True)
        value = np.log(total).sum() - own.sum() + 0.5 * (penalty * weights**2).sum()
        share /= total
        share[every, code] -= 1
        gradient = placed.T @ share + penalty * weights
        return float(value), np.concatenate([gradient.ravel(), share.sum(axis=0) * unit])

    found = minimize(
        loss,
        np.zeros(size + classes),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": max_iterations,
            "maxfun": 2 * max_iterations,
            "maxcor": MEMORY,
            "gtol": tolerance,
            "ftol": 0,
        },
    )
    weights = (along @ found.x[:size].reshape(-1, classes)).T
    intercept = found.x[size:] * unit
    if classes == 2:
        weights, intercept = weights[1:] - weights[:1], intercept[1:] - intercept[:1]
    converged = bool(np.abs(found.jac).max() <= tolerance)
    return Logistic(weights, intercept - weights @ mean, converged, int(found.nit))


def _coordinates(centred: Doubles, curvature: float) -> tuple[Doubles, Doubles]:
    """Principal directions (D, d) of rows (N, D), d = min(N, D), and the unit (d,) along each."""
    corner = np.linalg.qr(centred, mode="r")
    _, length, directions = np.linalg.svd(corner, full_matrices=False)
    return directions.T, 1 / np.sqrt(curvature * length**2 + 1)
