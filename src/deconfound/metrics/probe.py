"""Linear probe: a multinomial logistic regression on a frozen embedding."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from deconfound.arrays import ROUNDING, AnyCodes, AnyFloats, Codes, Doubles, Mask
from deconfound.errors import UserError
from deconfound.metrics.accuracy import accuracy, macro_f1, seen_in_training
from deconfound.metrics.logistic import logistic_regression
from deconfound.metrics.neighbors import refuse_malformed
from deconfound.metrics.score import Metric, Score
from deconfound.runtime.seeds import numpy_stream

PAPER = "Makino et al., SCBD, section 4.2.1 (sensitivity to batch effects)"
CHANCE = "after Cohen 1960, expected agreement"


def _metrics(target: str, better: Literal["higher", "lower"], so: str = "") -> tuple[Metric, ...]:
    read = f"of the {target} read by a fresh linear probe{so}"
    dealt = f"macro-F1 of the {target} probe's answers dealt out at random"
    name = f"probe_{target}"
    return (
        Metric(f"{name}_macro_f1", better=better, paper=PAPER, summary=f"macro-F1 {read}"),
        Metric(f"{name}_accuracy", better=better, paper=PAPER, summary=f"accuracy {read}"),
        Metric(f"{name}_macro_f1_chance", better="context", paper=CHANCE, summary=dealt),
    )


LABEL_MACRO_F1, LABEL_ACCURACY, LABEL_CHANCE = _metrics("label", "higher")
ENVIRONMENT_MACRO_F1, ENVIRONMENT_ACCURACY, ENVIRONMENT_CHANCE = _metrics(
    "environment", "lower", ": what has leaked"
)
BATCH_PREDICTION_MACRO_F1 = Metric(
    "batch_prediction_macro_f1",
    better="lower",
    paper=PAPER + ", and A.3",
    summary="macro-F1 of the environment by the paper's probe: 60 % of all rows predict the others",
)
BATCH_PREDICTION_ROWS = 200_000
"""Most rows that the paper's probe is fitted and scored on."""
LOGITS = 2**24
"""Most logits held at a time: a million rows of 5,000 classes would be 40 GB."""
ITERATIONS = 5_000
"""Most iterations of a probe. The hardest seen, raw features of 379 wells, took 1,697."""


@dataclass(frozen=True)
class LinearProbe:
    """Scores of a probe and the probe itself, in the units of the embedding.

    The logits of a row x are `coefficients @ x + intercept`: `coefficients` (C, D) and
    `intercept` (C,) float64 for `classes` (C,) int64, or (1, D) and (1,), the logit of the second
    class, when there are two. `predicted` (T,) int64 answers every test row, in row order. `note`
    holds the caveats of the fit, which both scores repeat. All arrays are empty, and the scores
    NaN with the reason, where nothing could be fitted or the fit did not converge.
    """

    macro_f1: Score
    accuracy: Score
    predicted: Codes
    classes: Codes
    coefficients: Doubles
    intercept: Doubles
    note: str


def linear_probe(
    embedding: AnyFloats,
    target: AnyCodes,
    is_train: Mask,
    is_test: Mask,
    *,
    seed: int = 0,
    max_train_rows: int = 20_000,
    max_iterations: int = ITERATIONS,
) -> LinearProbe:
    """Fit a multinomial logistic regression on training rows and score it on test rows.

    `embedding` (N, D) float, `target` (N,) codes with -1 = missing (label or environment),
    `is_train` and `is_test` (N,) bool. Macro-F1 and accuracy, in [0, 1], over the test rows whose
    class the fitted rows contain (Makino et al., SCBD, section 4.2.1: there a 60/40 split of all
    rows). L2 penalty with C = 1, scikit-learn's default. Every column is standardised by the mean
    and standard deviation of the fitted rows; deviation: the authors did so for two classes only.
    A column that does not vary over them beyond rounding is not read.

    More than `max_train_rows` training rows are thinned at random, by `seed`; the notes say so.
    The answers are those of the minimum (`logistic_regression`); of a fit that has not converged
    after `max_iterations` nothing is shown. Raises UserError on a malformed embedding or a row that
    is in both parts.
    """
    refuse_malformed(embedding)
    if (is_train & is_test).any():
        row = int(np.flatnonzero(is_train & is_test)[0])
        raise UserError(f"row {row} is both training and test; a probe needs disjoint parts")
    train = np.flatnonzero(is_train & (target >= 0))
    available = len(train)
    if available > max_train_rows:
        drawn = numpy_stream(seed, "linear probe").choice(train, max_train_rows, replace=False)
        train = np.sort(drawn)
    classes = np.unique(target[train]).astype(np.int64)
    if len(classes) < 2:
        return _undefined("training rows hold fewer than two classes")

    features = embedding[train].astype(np.float64)
    fitted = _fit(features, target[train], max_iterations, standardise=True)
    if isinstance(fitted, str):
        return _undefined(fitted)
    coefficients, intercept = fitted
    thinned = available > len(train)
    note = f"fitted on {len(train)} of {available} training rows" if thinned else ""
    predicted = classes[_answers(embedding[is_test], coefficients, intercept)]
    truth = target[is_test]
    seen = seen_in_training(truth, classes)
    return LinearProbe(
        _noted(macro_f1(truth, predicted, seen), note),
        _noted(accuracy(truth, predicted, seen), note),
        predicted,
        classes,
        coefficients,
        intercept,
        note,
    )


def batch_prediction(
    embedding: AnyFloats,
    environment: AnyCodes,
    seed: int = 0,
    max_rows: int = BATCH_PREDICTION_ROWS,
    max_iterations: int = ITERATIONS,
) -> Score:
    """Macro-F1 with which environments are predicted: Makino et al., SCBD, section 4.2.1 and A.3.

    Rows `embedding` (N, D) float with a known `environment` (N,) codes, −1 = missing, are split at
    random, by `seed`: a multinomial logistic regression with scikit-learn's default penalty (L2
    with C = 1) is fitted on 60 % and scored on 40 %. As in the authors' code, columns are
    standardised for two environments alone. All rows take part, also those that the encoder was
    trained on: it is in distribution, and no probe of unseen rows. Deviation: the authors stop
    after 100 iterations; here the fit goes on until it converges (`logistic_regression`).

    More than `max_rows` rows are thinned first, each environment in proportion (one row at least);
    the note says so. NaN where there are fewer than two environments, and where the fit has not
    converged after `max_iterations`. Raises UserError on a malformed embedding.
    """
    from sklearn.metrics import f1_score

    refuse_malformed(embedding)
    rows = np.flatnonzero(environment >= 0)
    known, notes = len(rows), []
    stream = numpy_stream(seed, "batch prediction")
    rows = rows[stream.permutation(known)]
    if known > max_rows:
        rows = rows[_in_proportion(environment[rows], max_rows)]
        notes.append(f"{len(rows)} of {known} rows")
    train, test = np.split(rows, [round(0.6 * len(rows))])
    classes = np.unique(environment[train])
    if len(classes) < 2 or not len(test):
        return Score(math.nan, 0, "fewer than two environments")
    fitted = _fit(
        embedding[train].astype(np.float64),
        environment[train],
        max_iterations,
        standardise=len(classes) == 2,
    )
    if isinstance(fitted, str):
        return Score(math.nan, len(test), "; ".join([*notes, fitted]))
    coefficients, intercept = fitted
    predicted = classes[_answers(embedding[test], coefficients, intercept)]
    value = f1_score(environment[test], predicted, average="macro", zero_division=0.0)
    return Score(float(value), len(test), "; ".join(notes))


def _in_proportion(environment: AnyCodes, most: int) -> Codes:
    """Places of about `most` rows, the first of each environment: its share, and at least one."""
    kept = np.maximum(np.bincount(environment) * most // len(environment), 1)
    place = pd.Series(environment).groupby(environment).cumcount()
    return np.flatnonzero(place < kept[environment])


def _fit(
    features: Doubles, target: AnyCodes, max_iterations: int, *, standardise: bool
) -> tuple[Doubles, Doubles] | str:
    """Coefficients and intercepts for raw features, or why there are none."""
    scale = np.ones(features.shape[1])
    if standardise:
        sd = features.std(axis=0)
        varies = sd > ROUNDING * np.abs(features.mean(axis=0))
        scale = np.divide(1, sd, out=np.zeros_like(sd), where=varies)
    found = logistic_regression(features * scale, target, max_iterations)
    if not found.converged:
        return f"the probe had not converged after {found.iterations} iterations"
    return found.coefficients * scale, found.intercept


def _noted(score: Score, note: str) -> Score:
    return score._replace(note="; ".join(text for text in (note, score.note) if text))


def _answers(features: AnyFloats, coefficients: Doubles, intercept: Doubles) -> Codes:
    """Place of the likeliest class of each row, (N,); two classes share one row of coefficients."""
    answer = np.empty(len(features), np.int64)
    size = max(1, LOGITS // len(coefficients))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        logits = features[rows] @ coefficients.T + intercept
        answer[rows] = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
    return answer


def _undefined(reason: str) -> LinearProbe:
    nothing, codes, weights = Score(math.nan, 0, reason), np.empty(0, np.int64), np.empty(0)
    return LinearProbe(nothing, nothing, codes, codes, weights.reshape(0, 0), weights, reason)
