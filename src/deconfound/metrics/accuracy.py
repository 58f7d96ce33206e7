"""Accuracy and macro-F1 over the classes that training and test share, with their chance level.

Arrays of several folds may be joined end to end: the scores are then pooled over the folds.
"""

import numpy as np

from deconfound.arrays import AnyCodes, Codes, Mask
from deconfound.metrics.score import Metric, Score

ACCURACY = Metric(
    "accuracy",
    better="higher",
    paper="Makino et al., SCBD, Table 1",
    summary="share of test images given their own label, over classes seen in training",
)
MACRO_F1 = Metric(
    "macro_f1",
    better="higher",
    paper="Pernice et al., IST, Table 1",
    summary="F1 averaged over the classes present in both training and test",
)
CLASS_COVERAGE = Metric(
    "class_coverage",
    better="context",
    paper="Pernice et al., IST, Table 1 (level folds)",
    summary="share of the test classes that training contains",
)
ACCURACY_CHANCE = Metric(
    "accuracy_chance",
    better="context",
    paper="Cohen 1960, expected agreement",
    summary="accuracy of the same predictions dealt out at random",
)
MACRO_F1_CHANCE = Metric(
    "macro_f1_chance",
    better="context",
    paper="after Cohen 1960, expected agreement",
    summary="macro-F1 of the same predictions dealt out at random",
)
SEEN_NEARBY = Metric(
    "macro_f1_seen_nearby",
    better="higher",
    paper="after Pernice et al., IST, section 5",
    summary="macro-F1 over the classes that training saw close to the held-out group",
)
UNSEEN_NEARBY = Metric(
    "macro_f1_unseen_nearby",
    better="higher",
    paper="after Pernice et al., IST, section 5",
    summary="macro-F1 over the classes that training saw, but not close to the held-out group",
)
SEEN_NEARBY_CHANCE = Metric(
    "macro_f1_seen_nearby_chance",
    better="context",
    paper="after Cohen 1960, expected agreement",
    summary="macro_f1_seen_nearby of the same predictions dealt out at random",
)
UNSEEN_NEARBY_CHANCE = Metric(
    "macro_f1_unseen_nearby_chance",
    better="context",
    paper="after Cohen 1960, expected agreement",
    summary="macro_f1_unseen_nearby of the same predictions dealt out at random",
)


def seen_in_training(truth: AnyCodes, train_label: AnyCodes) -> Mask:
    """Whether each test row's class occurs in training.

    `truth` (N,) are the test labels and `train_label` (M,) the training labels, -1 = missing.
    A row without a label is not seen.
    """
    return (truth >= 0) & np.isin(truth, train_label)


def accuracy(truth: AnyCodes, predicted: AnyCodes, seen: Mask) -> Score:
    """Share of scored rows with `predicted == truth`, in [0, 1].

    All arrays are (N,); `seen` comes from `seen_in_training`. Rows whose class training lacks are
    left out, not counted as errors. NaN if no row remains.
    """
    note = _coverage_note(truth, seen)
    if not seen.any():
        return Score(np.nan, 0, note)
    return Score(float(np.mean(truth[seen] == predicted[seen])), int(seen.sum()), note)


def macro_f1(truth: AnyCodes, predicted: AnyCodes, seen: Mask) -> Score:
    """Unweighted mean of per-class F1 = 2 TP / (2 TP + FP + FN), in [0, 1].

    All arrays are (N,); `seen` comes from `seen_in_training`. The mean runs over the classes
    present in both training and test, so a class that is absent from either scores nothing rather
    than 0; a prediction of such a class still counts against the true one. NaN if no row remains.
    """
    note = _coverage_note(truth, seen)
    if not seen.any():
        return Score(np.nan, 0, note)
    hits, support, guesses = _class_counts(truth[seen], predicted[seen])
    return Score(float(np.mean(2 * hits / (support + guesses))), int(seen.sum()), note)


def macro_f1_among(
    truth: AnyCodes, predicted: AnyCodes, seen: Mask, among: Mask
) -> tuple[Score, Score]:
    """`macro_f1` and its chance level over some of its classes: those of the rows `among` (N,).

    Each class has the F1 that it has in `macro_f1`, so the mean of two parts, by their classes, is
    the whole. `n` counts rows of those classes. Both NaN if there is none.
    """
    classes = np.unique(truth[seen])
    chosen = np.isin(classes, truth[seen & among])
    rows = int(np.isin(truth[seen], classes[chosen]).sum())
    if not rows:
        none = Score(np.nan, 0, "no test class is of this kind")
        return none, none
    hits, support, guesses = _class_counts(truth[seen], predicted[seen])
    expected = support * guesses / seen.sum()
    of_class, by_chance = (2 * one / (support + guesses) for one in (hits, expected))
    return Score(float(of_class[chosen].mean()), rows), Score(float(by_chance[chosen].mean()), rows)


def class_coverage(truth: AnyCodes, seen: Mask) -> Score:
    """Share of the classes in `truth` (N,) that training contains, in [0, 1]; `n` counts rows.

    `seen` (N,) comes from `seen_in_training`. NaN if no row has a label.
    """
    note = _coverage_note(truth, seen)
    labelled = int((truth >= 0).sum())
    if not labelled:
        return Score(np.nan, 0, note)
    classes = np.unique(truth[truth >= 0])
    return Score(len(np.unique(truth[seen])) / len(classes), labelled, note)


def accuracy_chance(truth: AnyCodes, predicted: AnyCodes, seen: Mask) -> Score:
    """Accuracy expected if the same predictions were dealt to the scored rows at random, in [0, 1].

    Arrays as for `accuracy`. Equals 1/C for C balanced classes, and the share of the commonest
    class for a predictor that always answers it.
    """
    if not seen.any():
        return Score(np.nan, 0, _coverage_note(truth, seen))
    _, support, guesses = _class_counts(truth[seen], predicted[seen])
    rows = int(seen.sum())
    return Score(float(np.sum(support * guesses)) / rows**2, rows)


def macro_f1_chance(truth: AnyCodes, predicted: AnyCodes, seen: Mask) -> Score:
    """Macro-F1 expected if the same predictions were dealt to the scored rows at random.

    Arrays as for `macro_f1`; exact, because the margins, and so every denominator, stay fixed.
    """
    if not seen.any():
        return Score(np.nan, 0, _coverage_note(truth, seen))
    _, support, guesses = _class_counts(truth[seen], predicted[seen])
    rows = int(seen.sum())
    expected_hits = support * guesses / rows
    return Score(float(np.mean(2 * expected_hits / (support + guesses))), rows)


def _class_counts(truth: AnyCodes, predicted: AnyCodes) -> tuple[Codes, Codes, Codes]:
    """Per class of `truth`: right predictions, rows of the class, predictions of the class."""
    classes, code = np.unique(truth, return_inverse=True)
    size = len(classes)
    hits = np.bincount(code[truth == predicted], minlength=size)
    support = np.bincount(code, minlength=size)
    among = predicted[np.isin(predicted, classes)]
    guesses = np.bincount(np.searchsorted(classes, among), minlength=size)
    return hits.astype(np.int64), support.astype(np.int64), guesses.astype(np.int64)


def _coverage_note(truth: AnyCodes, seen: Mask) -> str:
    labelled = truth >= 0
    if not labelled.any():
        return "no test row has a label"
    classes, kept = len(np.unique(truth[labelled])), len(np.unique(truth[seen]))
    left_out = int((labelled & ~seen).sum())
    if not left_out:
        return ""
    return f"{kept} of {classes} test classes are in training; {left_out} rows are not scored"
