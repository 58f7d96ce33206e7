"""measure: the scores of embeddings files, raw values, one row for each score."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.nearby import seen_nearby
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import coded, joined_key, listed, require_columns
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.representations import RepresentationScorer
from deconfound.evaluation.scores import NamedScore, classification, score_row, write_scores
from deconfound.files.object_store import is_url
from deconfound.metrics.accuracy import seen_in_training
from deconfound.runtime.cluster import Cluster
from deconfound.runtime.progress import Progress

Part = tuple[Path, str]
"""An embeddings file, and the name of a representation in it."""


def measure(
    embeddings: Iterable[Path],
    out: Path | None = None,
    *,
    seed: int = 0,
    quiet: bool = False,
    cluster: Cluster | None = None,
) -> pd.DataFrame:
    """Score embeddings files; folds of one level, method and seed are also scored pooled.

    Returns, and writes to the Parquet file `out`, the columns method, fold, seed, representation,
    metric, part (the rows scored), value, n, note, config (of the run, as JSON). Workers of a
    `cluster`, who share the folders of the files, score a representation each. Raises UserError if
    `out` exists or is being written, if no file is given or if a file cannot be read.
    """
    paths = [Path(path) for path in embeddings]
    if not paths:
        raise UserError("nothing to measure; give one or more .h5ad files of `deconfound embed`")
    real = [path.resolve() for path in paths]
    twice = [path for path, place in zip(paths, real, strict=True) if real.count(place) > 1]
    if twice:
        raise UserError(f"{twice[0]}: named twice; its scores would count twice, name it once")
    return write_scores(out, lambda: _measured(paths, seed, quiet, cluster))


class _File(NamedTuple):
    """An embeddings file, all of it scored but for its representations."""

    path: Path
    about: dict[str, Any]
    fold: str
    predicted: list[NamedScore]
    of_test: pd.DataFrame
    """As `_predictions_of_test` has it."""
    names: tuple[str, ...]
    """Of the representations."""
    alarms: list[NamedScore]


def _measured(
    paths: list[Path], seed: int, quiet: bool, cluster: Cluster | None
) -> list[dict[str, Any]]:
    files: list[_File] = []
    found: dict[Part, list[NamedScore]] = {}
    with Progress("measure", len(paths), "files", quiet=quiet) as progress:
        for path in paths:
            opened = _opened(path)
            scorer = RepresentationScorer(opened, seed)
            files.append(_without_representations(opened, scorer, path))
            if cluster is None:
                found |= {(path, name): scorer.scores(name) for name in scorer.names}
            progress.update(1, path.name)
    if cluster is not None:
        found = _scored_elsewhere(cluster, files, seed, quiet)
    rows: list[dict[str, Any]] = []
    predictions: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}
    last_of: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        of_blocks = [score for name in file.names for score in found[file.path, name]]
        scores = [*file.predicted, *of_blocks, *file.alarms]
        rows += [score_row(file.about, file.fold, score) for score in scores]
        level, holds_out, _ = file.fold.partition("=")
        if holds_out:
            key = level, _setting(file.about)
            predictions.setdefault(key, {})[file.fold] = file.of_test
            last_of[key] = file.about
    for key, folds in predictions.items():
        if len(folds) > 1:
            name = f"{key[0]} (pooled over {len(folds)} folds)"
            rows += [
                score_row(last_of[key], name, row) for row in _pooled(pd.concat(folds.values()))
            ]
    return rows


def _opened(path: Path) -> Embeddings:
    """Embeddings of cells in the order of their identifier; raises UserError for others."""
    opened = read_embeddings(path)
    if "aggregated" in opened.about:
        raise UserError(f"{path}: holds genes, not cells; add --complexes FILE")
    require_columns(opened.table, [str(opened.roles.label)], str(path))
    return opened.taken(opened.order())


def _without_representations(opened: Embeddings, scorer: RepresentationScorer, path: Path) -> _File:
    refuse_unshared_labels(opened, path)
    predicted = prediction_scores(opened)
    if not predicted and not scorer.names:
        parts = listed(sorted(set(opened.part.tolist())))
        raise UserError(
            f"{path}: nothing to score: no row outside training has a label and a "
            "prediction, and there are not both training and unseen rows "
            f"(parts: {parts}); embed the whole screen of the run, or one with labels"
        )
    fold = fold_key(str(opened.about["fold"]), opened.roles)
    of_test = _predictions_of_test(opened)
    return _File(path, opened.about, fold, predicted, of_test, scorer.names, scorer.alarms())


@dataclass(frozen=True)
class _Worker:
    """Makes what scores a representation in another process."""

    seed: int

    def __call__(self) -> Callable[[Part], list[NamedScore]]:
        """What scores a representation; the file that it scored last stays in memory."""
        held: dict[Path, RepresentationScorer] = {}

        def score(part: Part) -> list[NamedScore]:
            path, name = part
            if path not in held:
                held.clear()
                held[path] = RepresentationScorer(_opened(path), self.seed)
            return held[path].scores(name)

        return score


def _scored_elsewhere(
    cluster: Cluster, files: list[_File], seed: int, quiet: bool
) -> dict[Part, list[NamedScore]]:
    """The scores of all representations, by the workers of a cluster."""
    parts = [(file.path, name) for file in files for name in file.names]
    there = [(path if is_url(path) else path.resolve(), name) for path, name in parts]
    found: dict[Part, list[NamedScore]] = {}
    with Progress("measure", len(parts), "representations", quiet=quiet) as progress:
        answers = cluster.in_order(_Worker(seed), there, threads=1, named=_named, keeps=False)
        for part, scores in zip(parts, answers, strict=True):
            found[part] = scores
            progress.update(1, part[1])
    return found


def _named(part: Part) -> str:
    return f"{part[1]} of {part[0]}"


def _setting(about: dict[str, Any]) -> str:
    """What two runs must share for their folds to be pooled: everything except the fold."""
    config = dict(about["config"])
    config["data"] = {k: v for k, v in config["data"].items() if k != "fold"}
    return json.dumps([about["screen"], about["selection"], config], sort_keys=True)


def refuse_unshared_labels(embeddings: Embeddings, path: Path) -> None:
    """Raise UserError if the run was trained on none of the labels that its rows have."""
    if embeddings.table[PREDICTED].isna().all():
        return
    present = embeddings.label().dropna().unique()
    columns = [str(embeddings.roles.label)]
    trained = [joined_key(name, columns) for name in embeddings.about["labels"]]
    if len(present) and not set(present) & set(trained):
        raise UserError(
            f"{path}: the run was trained on none of the labels of column "
            f"{embeddings.roles.label!r} ({listed(sorted(present), 5)}) but on "
            f"{listed(trained, 5)}; no prediction could be right, write the labels as in the "
            "screen trained on"
        )


def prediction_scores(embeddings: Embeddings) -> list[NamedScore]:
    """Scores of the method's own predictions on every part but train and unused."""
    label = coded(embeddings.label())
    predicted = coded(embeddings.table[PREDICTED], label.names).codes
    part = embeddings.part
    if (predicted < 0).all():
        return []
    fold = str(embeddings.about["fold"])
    nearby = seen_nearby(embeddings.table, embeddings.roles, fold, part)
    trained = coded(pd.Series(embeddings.about["labels"]), label.names).codes
    rows = []
    for name in ("val", "ood_val", "id_test", "test", "new"):
        inside = part == name
        if inside.any():
            truth = label.codes[inside]
            seen = seen_in_training(truth, trained)
            near = nearby[inside] if nearby is not None and name == "test" else None
            rows += classification(truth, predicted[inside], seen, name, near)
    return rows


def _predictions_of_test(embeddings: Embeddings) -> pd.DataFrame:
    """The columns truth, predicted and seen (whether training has the label) of test rows."""
    part, label = embeddings.part, embeddings.label()
    seen = label.isin(label[part == "train"].dropna().unique())
    predicted = keys(embeddings.table[PREDICTED])
    table = pd.DataFrame({"truth": label, "predicted": predicted, "seen": seen})
    of_test: pd.DataFrame = table[part == "test"]
    return of_test


def _pooled(rows: pd.DataFrame) -> list[NamedScore]:
    label = coded(rows["truth"])
    predicted = coded(rows["predicted"], label.names).codes
    return classification(label.codes, predicted, rows["seen"].to_numpy(dtype=bool), "test")
