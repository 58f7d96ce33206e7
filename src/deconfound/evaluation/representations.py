"""The scores of representations: fresh probes, neighbours, and alarms of collapse."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Codes, Doubles, Floats, Mask
from deconfound.data.tables.table import coded
from deconfound.embeddings.file import Embeddings
from deconfound.evaluation.sampling import noted, standard_errors
from deconfound.evaluation.scores import NamedScore
from deconfound.losses import supervised_contrastive
from deconfound.metrics.accuracy import accuracy, macro_f1, macro_f1_chance, seen_in_training
from deconfound.metrics.batch_cv import knn_batch_cv
from deconfound.metrics.collapse import mean_resultant_length, supcon_against_collapse
from deconfound.metrics.mixing import clisi, ilisi, lisi, lisi_ratio
from deconfound.metrics.neighbors import neighbor_graph
from deconfound.metrics.probe import batch_prediction, linear_probe
from deconfound.metrics.score import Score
from deconfound.runtime.seeds import numpy_stream

GRAPH_ROWS = 20_000
PROBE_ROWS = 8_000
COLLAPSE_BATCH = 1_024


class _Rows(NamedTuple):
    """The rows whose representations are scored, (N,) each."""

    label: Codes
    environment: Codes
    part: npt.NDArray[np.str_]
    train: Mask
    inside: Mask
    """Whether a row is unseen and from a training environment."""


class RepresentationScorer:
    """Scores the representations of embeddings, one at a time."""

    def __init__(self, embeddings: Embeddings, seed: int) -> None:
        part, fold = embeddings.part, embeddings.about["fold"]
        # Unseen rows from training environments are id_test, else an iid test, else val.
        self._unseen = (
            "id_test" if (part == "id_test").any() else "test" if fold == "iid" else "val"
        )
        self._embeddings, self._seed = embeddings, seed
        train, inside = part == "train", part == self._unseen
        self.names: tuple[str, ...] = ()
        """Of the representations; none where training rows or unseen rows are missing."""
        if not train.any() or not inside.any():
            return
        self.names = tuple(sorted(embeddings.representations))
        label, environment = coded(embeddings.label()).codes, coded(embeddings.environment()).codes
        self._rows = _Rows(label, environment, part, train, inside)
        self._graphed = _graphed(self._rows, seed)
        # A fold that holds no environment out lets a probe be fitted on all of its rows.
        self._no_environment_held_out = fold in ("iid", "given") and bool(
            np.isin(environment, environment[train]).all()
        )

    def scores(self, name: str) -> list[NamedScore]:
        """Scores of one representation of `names`: probes, and its neighbours."""
        values, rows = self._embeddings.representations[name], self._rows
        scores = _probes(name, values, rows, self._unseen, self._seed)
        if self._no_environment_held_out:
            score = batch_prediction(values, rows.environment, self._seed)
            scores.append(NamedScore(name, "batch_prediction_macro_f1", "all", score))
        of_graph = _Rows._make(one[self._graphed] for one in rows)
        near = _neighbourhood(name, values[self._graphed], of_graph, self._unseen)
        return scores + _of_drawn(near, of_graph, rows, self._seed)

    def alarms(self) -> list[NamedScore]:
        """Of content that has shrunk to a point; none where there is no content."""
        if "content" not in self.names:
            return []
        content = self._embeddings.representations["content"]
        return _collapse(content, self._rows, self._unseen, self._seed)


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
