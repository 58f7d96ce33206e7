"""measure: the scores of embeddings files, raw values, one row for each score."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from deconfound.arrays import Codes, Doubles, Floats, Mask
from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.nearby import seen_nearby
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import coded, joined_key, listed, require_columns
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.sampling import noted, standard_errors
from deconfound.evaluation.scores import NamedScore, classification, score_row, write_scores
from deconfound.losses import supervised_contrastive
from deconfound.metrics.accuracy import accuracy, macro_f1, macro_f1_chance, seen_in_training
from deconfound.metrics.batch_cv import knn_batch_cv
from deconfound.metrics.collapse import mean_resultant_length, supcon_against_collapse
from deconfound.metrics.mixing import clisi, ilisi, lisi, lisi_ratio
from deconfound.metrics.neighbors import neighbor_graph
from deconfound.metrics.probe import batch_prediction, linear_probe
from deconfound.metrics.score import Score
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import numpy_stream

GRAPH_ROWS = 20_000
PROBE_ROWS = 8_000
COLLAPSE_BATCH = 1_024


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
    real = [path.resolve() for path in paths]
    twice = [path for path, place in zip(paths, real, strict=True) if real.count(place) > 1]
    if twice:
        raise UserError(f"{twice[0]}: named twice; its scores would count twice, name it once")
    return write_scores(out, lambda: _measured(paths, seed, quiet))


def _measured(paths: list[Path], seed: int, quiet: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    predictions: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}
    last_of: dict[tuple[str, str], dict[str, Any]] = {}
    with Progress("measure", len(paths), "files", quiet=quiet) as progress:
        for path in paths:
            opened = read_embeddings(path)
            about = opened.about
            if "aggregated" in about:
                raise UserError(f"{path}: holds genes, not cells; add --complexes FILE")
            require_columns(opened.table, [str(opened.roles.label)], str(path))
            opened = opened.taken(opened.order())
            refuse_unshared_labels(opened, path)
            measured = [*prediction_scores(opened), *representation_scores(opened, seed)]
            if not measured:
                parts = listed(sorted(set(opened.part.tolist())))
                raise UserError(
                    f"{path}: nothing to score: no row outside training has a label and a "
                    "prediction, and there are not both training and unseen rows "
                    f"(parts: {parts}); embed the whole screen of the run, or one with labels"
                )
            fold = fold_key(str(about["fold"]), opened.roles)
            rows += [score_row(about, fold, row) for row in measured]
            level, holds_out, _ = fold.partition("=")
            if holds_out:
                key = level, _setting(about)
                predictions.setdefault(key, {})[fold] = _predictions_of_test(opened)
                last_of[key] = about
            progress.update(1, path.name)
    for key, folds in predictions.items():
        if len(folds) > 1:
            name = f"{key[0]} (pooled over {len(folds)} folds)"
            rows += [
                score_row(last_of[key], name, row) for row in _pooled(pd.concat(folds.values()))
            ]
    return rows


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


class _Rows(NamedTuple):
    """The rows whose representations are scored, (N,) each."""

    label: Codes
    environment: Codes
    part: npt.NDArray[np.str_]
    train: Mask
    inside: Mask
    """Whether a row is unseen and from a training environment."""


def representation_scores(embeddings: Embeddings, seed: int) -> list[NamedScore]:
    """Scores of every representation; none where training rows or unseen rows are missing."""
    part, fold = embeddings.part, embeddings.about["fold"]
    # Unseen rows from training environments are id_test, else an iid test, else val.
    unseen = "id_test" if (part == "id_test").any() else "test" if fold == "iid" else "val"
    train, inside = part == "train", part == unseen
    if not train.any() or not inside.any():
        return []
    label, environment = coded(embeddings.label()).codes, coded(embeddings.environment()).codes
    rows = _Rows(label, environment, part, train, inside)
    graphed = _graphed(rows, seed)
    # A fold that holds no environment out lets a probe be fitted on all of its rows.
    no_environment_held_out = fold in ("iid", "given") and bool(
        np.isin(environment, environment[rows.train]).all()
    )
    scores: list[NamedScore] = []
    for name, values in sorted(embeddings.representations.items()):
        scores += _probes(name, values, rows, unseen, seed)
        if no_environment_held_out:
            score = batch_prediction(values, environment, seed)
            scores.append(NamedScore(name, "batch_prediction_macro_f1", "all", score))
        of_graph = _Rows._make(one[graphed] for one in rows)
        near = _neighbourhood(name, values[graphed], of_graph, unseen)
        scores += _of_drawn(near, of_graph, rows, seed)
    if "content" in embeddings.representations:
        scores += _collapse(embeddings.representations["content"], rows, unseen, seed)
    return scores


def _probes(name: str, values: Floats, rows: _Rows, unseen: str, seed: int) -> list[NamedScore]:
    """Scores of fresh linear probes fitted on training rows.

    The label is probed on unseen rows and on test rows, the environment on unseen rows alone: a
    held-out environment has no training row.
    """
    part = rows.part
    scores = []
    for target, codes, parts in (
        ("label", rows.label, sorted({unseen, "test"})),
        ("environment", rows.environment, [unseen]),
    ):
        is_test = np.isin(part, parts)
        probe = linear_probe(
            values, codes, rows.train, is_test, seed=seed, max_train_rows=PROBE_ROWS
        )
        if not len(probe.classes):
            metric = f"probe_{target}_macro_f1"
            scores += [NamedScore(name, metric, one, probe.macro_f1) for one in parts]
            continue
        for one in parts:
            chosen = part[is_test] == one
            if not chosen.any():
                continue
            truth, predicted = codes[is_test][chosen], probe.predicted[chosen]
            seen = seen_in_training(truth, codes[rows.train])
            for metric, score in (
                ("macro_f1", macro_f1(truth, predicted, seen)),
                ("accuracy", accuracy(truth, predicted, seen)),
                ("macro_f1_chance", macro_f1_chance(truth, predicted, seen)),
            ):
                noted = score._replace(note="; ".join(filter(None, (score.note, probe.note))))
                scores.append(NamedScore(name, f"probe_{target}_{metric}", one, noted))
    return scores


class _Near(NamedTuple):
    """Scores of neighbours, and what they were made of."""

    scores: list[NamedScore]
    lisi: Doubles
    """(U, 2) LISI of environment and label of every unseen row of the graph."""
    mixing: Callable[[Doubles], list[Score]]
    """The scores that LISI gives, the first ones of `scores`."""


def _neighbourhood(name: str, values: Floats, rows: _Rows, part: str) -> _Near:
    """LISI of unseen rows among unseen and training rows, and kNN BatchCV, on one graph."""
    label, environment = rows.label, rows.environment
    graph = neighbor_graph(values)
    per_row = lisi(graph, np.stack([environment, label], axis=1))[rows.inside]
    environments = len(np.unique(environment[environment >= 0]))
    labels = len(np.unique(label[label >= 0]))

    def mixing(of_rows: Doubles) -> list[Score]:
        of_environment, of_label = of_rows[:, 0], of_rows[:, 1]
        ratio = lisi_ratio(of_environment, of_label, environments, labels)
        medians = ilisi(of_environment, environments), clisi(of_label, labels)
        return [ratio.environment, ratio.label, ratio.ratio, *medians]

    batch_cv = knn_batch_cv(values, label, environment, rows.train, rows.inside, graph=graph)
    named = ("lisi_environment", "lisi_label", "lisi_ratio", "ilisi", "clisi", "knn_batch_cv")
    found = [*mixing(per_row), batch_cv.mean]
    scores = [
        NamedScore(name, metric, part, score) for metric, score in zip(named, found, strict=True)
    ]
    return _Near(scores, per_row, mixing)


def _of_drawn(near: _Near, drawn: _Rows, rows: _Rows, seed: int) -> list[NamedScore]:
    """The scores, noted where the graph holds but some rows, and with the error that this makes."""
    among, every = len(drawn.part), int((rows.inside | rows.train).sum())
    if among == every:
        return near.scores
    some, unseen = int(drawn.inside.sum()), int(rows.inside.sum())
    errors: list[float | None] = [None] * len(near.scores)
    if some < unseen:
        errors = [*standard_errors(near.mixing, near.lisi, seed), None]
    return [
        one._replace(score=noted(one.score, (some, unseen), (among, every), error))
        for one, error in zip(near.scores, errors, strict=True)
    ]


def _collapse(content: Floats, rows: _Rows, part: str, seed: int) -> list[NamedScore]:
    """The alarms for content that has shrunk to a point, on unseen rows."""
    content, label = content[rows.inside], rows.label[rows.inside]
    chosen = numpy_stream(seed, "collapse").permutation(len(content))[:COLLAPSE_BATCH]
    z = torch.nn.functional.normalize(torch.from_numpy(content[chosen]))
    loss = float(supervised_contrastive(z, torch.from_numpy(label[chosen])))
    against = supcon_against_collapse(loss, len(chosen))
    return [
        NamedScore("content", "mean_resultant_length", part, mean_resultant_length(content)),
        NamedScore("content", "supcon_collapse", part, against),
    ]


def _graphed(rows: _Rows, seed: int) -> Codes:
    """Rows of the neighbour graph, ascending: unseen rows, and training rows while there is room.

    Unseen rows fill at most half of the graph.
    """
    stream = numpy_stream(seed, "neighbour graph")
    unseen = stream.permutation(np.flatnonzero(rows.inside))[: GRAPH_ROWS // 2]
    seen = stream.permutation(np.flatnonzero(rows.train))[: GRAPH_ROWS - len(unseen)]
    return np.sort(np.concatenate([unseen, seen]))
