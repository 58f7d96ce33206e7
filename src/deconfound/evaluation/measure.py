"""measure: the scores of embeddings files, one row a score, raw values."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from deconfound.arrays import Codes, Mask
from deconfound.data.tables.table import Coded, coded
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.scores import COLUMNS, Row, classification, score_row
from deconfound.files import atomic
from deconfound.losses import supervised_contrastive
from deconfound.metrics import (
    accuracy,
    batch_prediction,
    clisi,
    ilisi,
    knn_batch_cv,
    linear_probe,
    lisi,
    lisi_ratio,
    macro_f1,
    macro_f1_chance,
    mean_resultant_length,
    neighbor_graph,
    seen_in_training,
    supcon_against_collapse,
)
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import numpy_stream

GRAPH_ROWS = 20_000
PROBE_ROWS = 8_000
PROBE_ITERATIONS = 200
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
            measured = [*prediction_scores(opened), *_representations(opened, seed)]
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
    """Everything that two runs must share for their folds to be pooled: all but the fold."""
    config = dict(about["config"])
    config["data"] = {k: v for k, v in config["data"].items() if k != "fold"}
    return json.dumps([about["screen"], about["selection"], config], sort_keys=True)


def prediction_scores(embeddings: Embeddings) -> list[Row]:
    """Scores of the method's own predictions on every part that training did not fit."""
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


def _pooled(folds: list[_Predictions]) -> list[Row]:
    truth = pd.concat([fold.truth for fold in folds])
    label = coded(truth)
    predicted = coded(pd.concat([fold.predicted for fold in folds]), label.names).codes
    seen = np.concatenate([fold.seen for fold in folds])
    return classification(label.codes, predicted, seen, "test")


def _representations(embeddings: Embeddings, seed: int) -> list[Row]:
    label, environment = coded(embeddings.label()), coded(embeddings.environment())
    part = embeddings.part
    train, inside = part == "train", part == _in_distribution_part(embeddings)
    if not train.any() or not inside.any():
        return []
    graphed = _thinned(train, inside, seed)
    rows: list[Row] = []
    for name, values in sorted(embeddings.representations.items()):
        rows += _probes(name, values, label, environment, embeddings, seed)
        if _is_in_distribution(embeddings, environment.codes):
            score = batch_prediction(values, environment.codes, seed)
            rows.append(Row(name, "batch_prediction_macro_f1", "all", score))
        rows += _neighbourhood(
            name,
            values[graphed],
            _take(label, graphed),
            _take(environment, graphed),
            train[graphed],
            inside[graphed],
            _in_distribution_part(embeddings),
        )
    if "content" in embeddings.representations:
        content = embeddings.representations["content"][inside]
        rows += _collapse(content, label.codes[inside], _in_distribution_part(embeddings), seed)
    return rows


def _in_distribution_part(embeddings: Embeddings) -> str:
    """The part of unseen rows from training environments: id_test, else an iid test, else val."""
    part = embeddings.part
    if (part == "id_test").any():
        return "id_test"
    return "test" if embeddings.about["fold"] == "iid" else "val"


def _is_in_distribution(embeddings: Embeddings, environment: Codes) -> bool:
    """Whether a fold holds no environment out, so that a probe may be fitted on all its rows."""
    of_train = environment[embeddings.part == "train"]
    return embeddings.about["fold"] in ("iid", "given") and bool(
        np.isin(environment, of_train).all()
    )


def _probes(
    name: str,
    values: npt.NDArray[np.float32],
    label: Coded,
    environment: Coded,
    embeddings: Embeddings,
    seed: int,
) -> list[Row]:
    """Fresh linear probes fitted on training rows: label on every other part, environment in
    distribution only, for a held-out environment has no training row."""
    part = embeddings.part
    within = _in_distribution_part(embeddings)
    rows = []
    for target, codes, parts in (
        ("label", label.codes, sorted({within, "test"})),
        ("environment", environment.codes, [within]),
    ):
        is_train, is_test = part == "train", np.isin(part, parts)
        probe = linear_probe(values, codes, is_train, is_test, seed, PROBE_ROWS, PROBE_ITERATIONS)
        if not len(probe.classes):
            rows.append(Row(name, f"probe_{target}_macro_f1", within, probe.macro_f1))
            continue
        for one in parts:
            chosen = part[is_test] == one
            if not chosen.any():
                continue
            truth, predicted = codes[is_test][chosen], probe.predicted[chosen]
            seen = seen_in_training(truth, codes[is_train])
            for metric, score in (
                ("macro_f1", macro_f1(truth, predicted, seen)),
                ("accuracy", accuracy(truth, predicted, seen)),
                ("macro_f1_chance", macro_f1_chance(truth, predicted, seen)),
            ):
                note = "; ".join(text for text in (score.note, probe.note) if text)
                rows.append(Row(name, f"probe_{target}_{metric}", one, score._replace(note=note)))
    return rows


def _neighbourhood(
    name: str,
    values: npt.NDArray[np.float32],
    label: Coded,
    environment: Coded,
    train: Mask,
    inside: Mask,
    part: str,
) -> list[Row]:
    """LISI of unseen rows among all in-distribution rows, and kNN BatchCV, from one graph."""
    graph = neighbor_graph(values)
    per_row = lisi(graph, np.stack([environment.codes, label.codes], axis=1))[inside]
    of_environment, of_label = per_row[:, 0], per_row[:, 1]
    environments = len(np.unique(environment.codes[environment.codes >= 0]))
    labels = len(np.unique(label.codes[label.codes >= 0]))
    ratio = lisi_ratio(of_environment, of_label, environments, labels)
    batch_cv = knn_batch_cv(values, label.codes, environment.codes, train, inside, graph=graph)
    return [
        Row(name, "lisi_environment", part, ratio.environment),
        Row(name, "lisi_label", part, ratio.label),
        Row(name, "lisi_ratio", part, ratio.ratio),
        Row(name, "ilisi", part, ilisi(of_environment, environments)),
        Row(name, "clisi", part, clisi(of_label, labels)),
        Row(name, "knn_batch_cv", part, batch_cv.mean),
    ]


def _collapse(content: npt.NDArray[np.float32], label: Codes, part: str, seed: int) -> list[Row]:
    chosen = numpy_stream(seed, "collapse").permutation(len(content))[:COLLAPSE_BATCH]
    z = torch.nn.functional.normalize(torch.from_numpy(content[chosen]))
    value = supervised_contrastive(z, torch.from_numpy(label[chosen]))
    return [
        Row("content", "mean_resultant_length", part, mean_resultant_length(content)),
        Row("content", "supcon_collapse", part, supcon_against_collapse(float(value), len(chosen))),
    ]


def _thinned(train: Mask, inside: Mask, seed: int) -> Codes:
    """All unseen rows and as many training rows as the graph has room for, ascending."""
    unseen, seen = np.flatnonzero(inside), np.flatnonzero(train)
    stream = numpy_stream(seed, "neighbour graph")
    unseen = stream.permutation(unseen)[: GRAPH_ROWS // 2]
    seen = stream.permutation(seen)[: GRAPH_ROWS - len(unseen)]
    return np.sort(np.concatenate([unseen, seen]))


def _take(values: Coded, rows: Codes) -> Coded:
    return Coded(values.codes[rows], values.names)
