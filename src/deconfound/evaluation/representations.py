"""Scores of the representations in an embeddings file: probes, neighbourhoods and collapse."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Codes, Floats, Mask
from deconfound.data.tables.table import Coded, coded
from deconfound.embeddings.file import Embeddings
from deconfound.evaluation.scores import NamedScore
from deconfound.losses import supervised_contrastive
from deconfound.metrics.accuracy import accuracy, macro_f1, macro_f1_chance, seen_in_training
from deconfound.metrics.batch_cv import knn_batch_cv
from deconfound.metrics.collapse import mean_resultant_length, supcon_against_collapse
from deconfound.metrics.mixing import clisi, ilisi, lisi, lisi_ratio
from deconfound.metrics.neighbors import neighbor_graph
from deconfound.metrics.probe import batch_prediction, linear_probe
from deconfound.runtime.seeds import numpy_stream

GRAPH_ROWS = 20_000
PROBE_ROWS = 8_000
PROBE_ITERATIONS = 200
COLLAPSE_BATCH = 1_024


@dataclass(frozen=True)
class _Rows:
    """The rows whose representations are scored."""

    label: Coded
    environment: Coded
    part: npt.NDArray[np.str_]
    """(N,) the fold's part of each row."""
    unseen: str
    """The part of unseen rows from training environments: id_test, else an iid test, else val."""

    @property
    def train(self) -> Mask:
        """(N,) whether training fitted each row."""
        return np.asarray(self.part == "train")

    @property
    def inside(self) -> Mask:
        """(N,) whether each row is unseen and from a training environment."""
        return np.asarray(self.part == self.unseen)

    def take(self, rows: Codes) -> "_Rows":
        """Some of the rows, by number."""
        label, environment = (
            Coded(one.codes[rows], one.names) for one in (self.label, self.environment)
        )
        return replace(self, label=label, environment=environment, part=self.part[rows])


def representation_scores(embeddings: Embeddings, seed: int) -> list[NamedScore]:
    """Scores of every representation; none where training rows or unseen rows are missing."""
    part, fold = embeddings.part, embeddings.about["fold"]
    unseen = "test" if fold == "iid" else "val"
    if (part == "id_test").any():
        unseen = "id_test"
    rows = _Rows(coded(embeddings.label()), coded(embeddings.environment()), part, unseen)
    if not rows.train.any() or not rows.inside.any():
        return []
    graphed = _graphed(rows, seed)
    # A fold that holds no environment out lets a probe be fitted on all of its rows.
    environment = rows.environment.codes
    no_environment_held_out = fold in ("iid", "given") and bool(
        np.isin(environment, environment[rows.train]).all()
    )
    scores: list[NamedScore] = []
    for name, values in sorted(embeddings.representations.items()):
        scores += _probes(name, values, rows, seed)
        if no_environment_held_out:
            score = batch_prediction(values, environment, seed)
            scores.append(NamedScore(name, "batch_prediction_macro_f1", "all", score))
        scores += _neighbourhood(name, values[graphed], rows.take(graphed))
    if "content" in embeddings.representations:
        scores += _collapse(embeddings.representations["content"], rows, seed)
    return scores


def _probes(name: str, values: Floats, rows: _Rows, seed: int) -> list[NamedScore]:
    """Scores of fresh linear probes fitted on training rows.

    The label is probed on unseen rows and on test rows, the environment on unseen rows alone: a
    held-out environment has no training row.
    """
    part, unseen = rows.part, rows.unseen
    scores = []
    for target, codes, parts in (
        ("label", rows.label.codes, sorted({unseen, "test"})),
        ("environment", rows.environment.codes, [unseen]),
    ):
        is_test = np.isin(part, parts)
        probe = linear_probe(
            values,
            codes,
            rows.train,
            is_test,
            seed=seed,
            max_train_rows=PROBE_ROWS,
            max_iterations=PROBE_ITERATIONS,
        )
        if not len(probe.classes):
            scores.append(NamedScore(name, f"probe_{target}_macro_f1", unseen, probe.macro_f1))
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
                note = "; ".join(text for text in (score.note, probe.note) if text)
                noted = score._replace(note=note)
                scores.append(NamedScore(name, f"probe_{target}_{metric}", one, noted))
    return scores


def _neighbourhood(name: str, values: Floats, rows: _Rows) -> list[NamedScore]:
    """LISI of unseen rows among unseen and training rows, and kNN BatchCV, on one graph."""
    label, environment, part = rows.label.codes, rows.environment.codes, rows.unseen
    graph = neighbor_graph(values)
    per_row = lisi(graph, np.stack([environment, label], axis=1))[rows.inside]
    of_environment, of_label = per_row[:, 0], per_row[:, 1]
    environments = len(np.unique(environment[environment >= 0]))
    labels = len(np.unique(label[label >= 0]))
    ratio = lisi_ratio(of_environment, of_label, environments, labels)
    batch_cv = knn_batch_cv(values, label, environment, rows.train, rows.inside, graph=graph)
    return [
        NamedScore(name, "lisi_environment", part, ratio.environment),
        NamedScore(name, "lisi_label", part, ratio.label),
        NamedScore(name, "lisi_ratio", part, ratio.ratio),
        NamedScore(name, "ilisi", part, ilisi(of_environment, environments)),
        NamedScore(name, "clisi", part, clisi(of_label, labels)),
        NamedScore(name, "knn_batch_cv", part, batch_cv.mean),
    ]


def _collapse(content: Floats, rows: _Rows, seed: int) -> list[NamedScore]:
    """The alarms for content that has shrunk to a point, on unseen rows."""
    content, label, part = content[rows.inside], rows.label.codes[rows.inside], rows.unseen
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
