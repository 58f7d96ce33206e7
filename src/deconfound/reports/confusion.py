"""Scores of each label and confusion matrices of held-out rows in a report, for every method."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from deconfound.data.tables.table import listed, natural_order
from deconfound.display.numbers import number
from deconfound.display.page import templates
from deconfound.reports.cells import Cells
from deconfound.reports.tables import level_title

MOST_LABELS = 24
"""Rows and columns of a matrix."""
MOST_SCORED = 100
"""Rows of the table of scores."""
MOST_MATRICES = 24
"""Matrices of a page."""
MOST_NAMED = 20
"""Labels that a sentence names."""
SHADES = 10
"""Steps of the colour scale, besides that of 0."""
OTHERS, NONE = "other labels", "no prediction"


class MatrixCell(NamedTuple):
    """Rows of a label that were given another or the same one."""

    shade: int
    text: str
    title: str
    right: bool


class Matrix(NamedTuple):
    """The confusion matrix of one method."""

    method: str
    over: str
    columns: list[str]
    rows: list[tuple[str, str, list[MatrixCell]]]
    """Label, what is said of it, and a cell for each column."""


class Score(NamedTuple):
    """A score of a label."""

    shade: int
    text: str


class Level(NamedTuple):
    """Everything that is shown of the folds of one level."""

    title: str
    methods: list[str]
    scores: list[tuple[str, str, str, list[Score]]]
    """Label, what is said of it, rows, and F1, precision and recall of each method."""
    matrices: list[Matrix]
    sentences: list[str]


def confusion_matrices(cells: Sequence[Cells]) -> Markup:
    """HTML of scores by label and confusion matrices of test rows; empty without predictions.

    The folds and seeds of a method are summed, level by level. At most `MOST_MATRICES` matrices of
    `MOST_LABELS` labels, those with most rows; the page says what is left out.
    """
    predicting = [one for one in cells if _rows_of(one) is not None]
    levels: list[Level] = []
    drawn = 0
    for name in sorted({one.level for one in predicting}, key=natural_order):
        level = _level(name, [one for one in predicting if one.level == name], drawn)
        drawn += len(level.matrices)
        levels.append(level)
    if not levels:
        return Markup("")
    return Markup(templates().get_template("confusion.html").render(levels=levels))


def label_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each label among `truth`: rows, recall, precision, f1, in 0 … 1, NaN where undefined.

    `rows` has the columns truth, predicted (missing where there is none) and seen, whether training
    has the label. As in `macro_f1`, only seen rows count; a label of none has rows and NaN.
    """
    seen = rows[rows["seen"].astype(bool)]
    support = rows.groupby("truth").size()
    scored = seen.groupby("truth").size().reindex(support.index, fill_value=0)
    guesses = seen.groupby("predicted").size().reindex(support.index, fill_value=0)
    hits = seen[seen["truth"] == seen["predicted"]].groupby("truth").size()
    hits = hits.reindex(support.index, fill_value=0)
    undefined = scored.where(scored > 0)
    return pd.DataFrame(
        {
            "rows": support,
            "recall": hits / undefined,
            "precision": (hits / guesses.where(guesses > 0)).where(scored > 0),
            "f1": 2 * hits / (undefined + guesses),
        }
    )


def _rows_of(cells: Cells) -> pd.DataFrame | None:
    """The columns truth, predicted and seen of labelled test rows; None without predictions."""
    chosen = cells.held_out & cells.label.notna().to_numpy()
    if not chosen.any() or cells.predicted[chosen].isna().all():
        return None
    truth = cells.label[chosen].astype(object)
    predicted = cells.predicted[chosen].astype(object)
    return pd.DataFrame(
        {"truth": truth, "predicted": predicted, "seen": truth.isin(cells.trained)}
    ).reset_index(drop=True)


def _level(name: str, cells: list[Cells], drawn: int) -> Level:
    methods = list(dict.fromkeys(one.name for one in cells))
    members = {method: [one for one in cells if one.name == method] for method in methods}
    rows = {
        method: pd.concat(
            [found for one in own if (found := _rows_of(one)) is not None], ignore_index=True
        )
        for method, own in members.items()
    }
    together = pd.concat(rows.values())
    order = together.groupby("truth").size().sort_values(ascending=False, kind="stable").index
    said = _remarks(cells)
    kept = sorted(order[:MOST_LABELS], key=natural_order)
    fitting = methods[: max(0, MOST_MATRICES - drawn)]
    matrices = [_matrix(one, members[one], rows[one], kept, said) for one in fitting]
    scores = _scores(rows, sorted(order[:MOST_SCORED], key=natural_order), said)
    sentences = _sentences(cells, set(order))
    if len(order) > MOST_LABELS:
        more = f"; the scores are of {MOST_SCORED}" if len(order) > MOST_SCORED else ""
        sentences.append(
            f"The matrices show the {MOST_LABELS} of {len(order):,} labels with most rows{more}."
        )
    if left := methods[len(fitting) :]:
        sentences.append(
            f"A page holds {MOST_MATRICES} matrices: those of {listed(left)} are not drawn."
        )
    return Level(level_title(name), methods, scores, matrices, sentences)


def _remarks(cells: list[Cells]) -> dict[str, str]:
    """What is said beside a label that training lacks in all or some of its folds."""
    tested: dict[str, list[bool]] = {}
    for fold in {one.split.fold: one for one in cells}.values():
        for label in fold.label[fold.held_out].dropna().unique():
            tested.setdefault(str(label), []).append(str(label) in fold.trained)
    remarks = {}
    for label, trained in tested.items():
        if not any(trained):
            remarks[label] = "never trained"
        elif not all(trained):
            lacking = len(trained) - sum(trained)
            remarks[label] = f"not trained in {lacking} of {len(trained)} folds"
    return remarks


def _sentences(cells: list[Cells], tested: set[str]) -> list[str]:
    never = sorted(
        (label for label, said in _remarks(cells).items() if said == "never trained"),
        key=natural_order,
    )
    trained: set[str] = set().union(*(one.trained for one in cells))
    alone = sorted(trained - tested, key=natural_order)
    found = []
    if never:
        found.append(
            f"Never trained, so never predicted and not scored: {listed(never, MOST_NAMED)}."
        )
    if alone:
        found.append(f"Only in training, so without a row: {listed(alone, MOST_NAMED)}.")
    return found


def _scores(
    rows: dict[str, pd.DataFrame], kept: list[str], said: dict[str, str]
) -> list[tuple[str, str, str, list[Score]]]:
    found = [label_scores(own).reindex(kept) for own in rows.values()]
    values = np.stack([one[["rows", "f1", "precision", "recall"]].to_numpy(float) for one in found])
    shown = []
    for place, label in enumerate(kept):
        counts = sorted({int(count) for count in values[:, place, 0] if not math.isnan(count)})
        span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"
        scores = [
            Score(_shade(value), number(value, 2))
            for value in values[:, place, 1:].ravel().tolist()
        ]
        shown.append((label, said.get(label, ""), span, scores))
    return shown


def _matrix(
    method: str, cells: list[Cells], rows: pd.DataFrame, kept: list[str], said: dict[str, str]
) -> Matrix:
    trained: set[str] = set().union(*(one.trained for one in cells))
    guesses = rows["predicted"].value_counts()
    columns = [label for label in kept if label in trained or label in guesses.index]
    for label in [*guesses.index, *sorted(trained - set(guesses.index), key=natural_order)]:
        if len(columns) < MOST_LABELS and label not in columns:
            columns.append(str(label))
    columns.sort(key=natural_order)
    columns = [label for label in kept if label in columns] + [
        label for label in columns if label not in kept
    ]
    lookup = {label: number for number, label in enumerate(columns)}
    place = np.array([lookup.get(one, len(columns)) for one in rows["predicted"]], np.int64)
    place[rows["predicted"].isna().to_numpy()] = len(columns) + 1
    counts = np.zeros((len(kept), len(columns) + 2), np.int64)
    truth = pd.Categorical(rows["truth"], kept).codes
    inside = truth >= 0
    np.add.at(counts, (truth[inside], place[inside]), 1)
    used = [*range(len(columns))]
    used += [extra for extra in (len(columns), len(columns) + 1) if counts[:, extra].any()]
    names = [*columns, OTHERS, NONE]
    shown = []
    for label, row in zip(kept, counts, strict=True):
        total = int(row.sum())
        of_row = [
            _cell(int(row[one]), total, one < len(columns) and names[one] == label) for one in used
        ]
        shown.append((label, said.get(label, ""), of_row))
    folds = len({one.split.fold for one in cells})
    seeds = len({one.split.seed for one in cells})
    over = ", ".join(
        f"{count} {noun}{'s' if count > 1 else ''}"
        for count, noun in ((folds, "fold"), (seeds, "seed"))
    )
    return Matrix(method, f"{len(rows):,} rows, {over}", [names[one] for one in used], shown)


def _cell(count: int, total: int, right: bool) -> MatrixCell:
    share = count / total if total else 0.0
    text = f"{100 * share:.0f}" if count else ""
    title = f"{count:,} of {total:,}" if count or right else ""
    return MatrixCell(_shade(share), text, title, right)


def _shade(share: float) -> int:
    """0 for nothing or undefined, else 1 … `SHADES`."""
    return 0 if math.isnan(share) or share <= 0 else max(1, round(share * SHADES))
