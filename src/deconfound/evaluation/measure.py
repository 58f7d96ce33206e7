"""measure: the scores of embeddings files, raw values, one row for each score."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Mask
from deconfound.data.tables.table import coded
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.representations import representation_scores
from deconfound.evaluation.scores import COLUMNS, NamedScore, classification, score_row
from deconfound.files import atomic
from deconfound.metrics.accuracy import seen_in_training
from deconfound.runtime.progress import Progress


def measure(
    embeddings: Iterable[Path], out: Path | None = None, *, seed: int = 0, quiet: bool = False
) -> pd.DataFrame:
    """Score embeddings files; folds of one level, method and seed are also scored pooled.

    Returns, and writes to the Parquet file `out`, the columns method, fold, seed, representation,
    metric, part (the rows scored), value, n, note, config (of the run, as JSON). Raises UserError
    if `out` exists or is being written, if no file is given or if a file cannot be read.
    """
    paths = [Path(path) for path in embeddings]
    if not paths:
        raise UserError("nothing to measure; give one or more .h5ad files of `deconfound embed`")
    if out is None:
        return _measured(paths, seed, quiet)
    with atomic.claimed(Path(out)):
        table = _measured(paths, seed, quiet)
        with atomic.atomic_file(Path(out)) as temporary:
            table.to_parquet(temporary)
    return table


def _measured(paths: list[Path], seed: int, quiet: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    predictions: dict[tuple[str, str], dict[str, _Predictions]] = {}
    last_of: dict[tuple[str, str], dict[str, Any]] = {}
    with Progress("measure", len(paths), "files", quiet=quiet) as progress:
        for path in paths:
            opened = read_embeddings(path)
            about = opened.about
            if "aggregated" in about:
                raise UserError(f"{path}: holds genes, not cells; add --complexes FILE")
            measured = [*prediction_scores(opened), *representation_scores(opened, seed)]
            rows += [score_row(about, str(about["fold"]), row) for row in measured]
            level = str(about["fold"]).partition("=")
            if level[1]:
                key = (level[0], _setting(about))
                of_folds = predictions.setdefault(key, {})
                of_folds[str(about["fold"])] = _predictions_of_test(opened)
                last_of[key] = about
            progress.update(1, path.name)
    for key, folds in predictions.items():
        if len(folds) > 1:
            name = f"{key[0]} (pooled over {len(folds)} folds)"
            rows += [score_row(last_of[key], name, row) for row in _pooled(list(folds.values()))]
    return pd.DataFrame(rows, columns=COLUMNS)


class _Predictions(NamedTuple):
    truth: pd.Series
    predicted: pd.Series
    seen: Mask


def _setting(about: dict[str, Any]) -> str:
    """What two runs must share for their folds to be pooled: everything except the fold."""
    config = dict(about["config"])
    config["data"] = {k: v for k, v in config["data"].items() if k != "fold"}
    return json.dumps([about["screen"], about["selection"], config], sort_keys=True)


def prediction_scores(embeddings: Embeddings) -> list[NamedScore]:
    """Scores of the method's own predictions on every part but train and unused."""
    label = coded(embeddings.label())
    predicted = coded(embeddings.table[PREDICTED], label.names).codes
    part = embeddings.part
    if (predicted < 0).all():
        return []
    trained = coded(pd.Series(embeddings.about["labels"]), label.names).codes
    rows = []
    for name in ("val", "ood_val", "id_test", "test", "new"):
        inside = part == name
        if not inside.any():
            continue
        truth, answer = label.codes[inside], predicted[inside]
        seen = seen_in_training(truth, trained)
        rows += classification(truth, answer, seen, name)
    return rows


def _predictions_of_test(embeddings: Embeddings) -> _Predictions:
    part, label = embeddings.part, embeddings.label()
    test = part == "test"
    seen = label[test].isin(label[part == "train"].dropna().unique())
    predicted = embeddings.table[PREDICTED].astype("string")
    return _Predictions(label[test], predicted[test], np.asarray(seen, dtype=bool))


def _pooled(folds: list[_Predictions]) -> list[NamedScore]:
    truth = pd.concat([fold.truth for fold in folds])
    label = coded(truth)
    predicted = coded(pd.concat([fold.predicted for fold in folds]), label.names).codes
    seen = np.concatenate([fold.seen for fold in folds])
    return classification(label.codes, predicted, seen, "test")
