"""The columns of a scores file, which has one row for each score."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deconfound.arrays import Codes, Mask
from deconfound.data.tables.declared import refuse_huge_parquet
from deconfound.errors import UserError
from deconfound.files import atomic, seal
from deconfound.metrics.accuracy import (
    accuracy,
    accuracy_chance,
    class_coverage,
    macro_f1,
    macro_f1_among,
    macro_f1_chance,
)
from deconfound.metrics.score import Score
from deconfound.runs.config import HELD_OUT_NOTES, SAW_HELD_OUT

COLUMNS = [
    "method", "fold", "seed", "representation", "metric", "part", "value", "n", "note", "config",
]  # fmt: skip
ALONE, MOMENTS, EXACT = "left alone", "moments", "rendered exactly"
BASELINES = (MOMENTS, ALONE)
"""Names under which a scores file holds the images left alone and those of matched moments, which
any imputer must beat. `EXACT`, the true images, no imputer can beat."""


class NamedScore(NamedTuple):
    """A score with the representation, the metric and the part that it is of."""

    representation: str
    metric: str
    part: str
    score: Score


def score_row(about: dict[str, Any], fold: str, row: NamedScore) -> dict[str, Any]:
    """One row of a scores file; `about` holds method, seed, config and perhaps saw_held_out."""
    of_method = [SAW_HELD_OUT] if about.get("saw_held_out") else []
    notes = (row.score.note, *about.get(HELD_OUT_NOTES, of_method))
    return {
        "method": about["method"],
        "fold": fold,
        "seed": about["seed"],
        "representation": row.representation,
        "metric": row.metric,
        "part": row.part,
        "value": float(row.score.value),
        "n": int(row.score.n),
        "note": "; ".join(note for note in notes if note),
        "config": json.dumps(about["config"]),
    }


def classification(
    truth: Codes, predicted: Codes, seen: Mask, part: str, nearby: Mask | None = None
) -> list[NamedScore]:
    """The scores of predictions on the rows of one part.

    Codes (N,) int64 of one numbering; `seen` (N,) comes from `seen_in_training`. With `nearby`
    (N,), from `seen_nearby`, macro-F1 also of the labels seen nearby and of those unseen, apart.
    """
    found = {
        "accuracy": accuracy(truth, predicted, seen),
        "macro_f1": macro_f1(truth, predicted, seen),
        "accuracy_chance": accuracy_chance(truth, predicted, seen),
        "macro_f1_chance": macro_f1_chance(truth, predicted, seen),
        "class_coverage": class_coverage(truth, seen),
    }
    if nearby is not None:
        for kind, among in (("seen_nearby", nearby), ("unseen_nearby", ~nearby)):
            score, chance = macro_f1_among(truth, predicted, seen, among)
            found |= {f"macro_f1_{kind}": score, f"macro_f1_{kind}_chance": chance}
    return [NamedScore("prediction", metric, part, score) for metric, score in found.items()]


def write_scores(out: Path | None, score: Callable[[], list[dict[str, Any]]]) -> pd.DataFrame:
    """The table of the rows that `score` returns, written to the Parquet file `out` if given.

    Raises UserError if `out` exists or is being written.
    """
    if out is None:
        return pd.DataFrame(score(), columns=COLUMNS)
    with atomic.claimed(Path(out)):
        table = pd.DataFrame(score(), columns=COLUMNS)
        seal.write_frame(Path(out), table)
    return table


def read_scores(path: Path) -> pd.DataFrame:
    """The table of a scores file; raises UserError if it is missing, damaged or no Parquet."""
    try:
        refuse_huge_parquet(Path(path))
        return seal.read_frame(Path(path))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as scores ({reason}); measure again") from error
