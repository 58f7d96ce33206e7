"""Scores and predictions on validation rows, and the checkpoints that are kept and used by them."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from deconfound.arrays import Rows
from deconfound.data.loading.batch import Batch
from deconfound.files import atomic
from deconfound.methods.contract import Method, Phase, Stage, weighted_sum
from deconfound.runs.checkpoint import save_weights
from deconfound.training.step import Network


class Predictions(NamedTuple):
    """The labels that a network predicts for some rows."""

    row: Rows
    """(N,) rows of the screen."""
    label: Rows
    """(N,) codes of training labels."""


@torch.no_grad()
def validation_scores(
    method: Method,
    stage: Stage,
    phase: Phase,
    batches: Iterable[tuple[Batch, bool]],
    fabric: Fabric,
    is_asked: Callable[[], bool],
) -> tuple[dict[str, float], Predictions] | None:
    """Scores by name, and this process's predictions.

    The scores are the losses of `phase`, "loss", which is the weighted sum of those that select,
    and the diagnostics, averaged over full batches, and the accuracy over all rows, unless the
    stage does not classify or no row has a known label.
    `is_asked` is called before each batch; once it says that the run is to stop, returns None.
    """
    sums: dict[str, float] = {}
    loss_batches = correct = known = 0
    rows, labels = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    with fabric.autocast():
        for batch, whole in batches:
            if is_asked():
                return None
            outputs = method.outputs(batch, stage.name)
            logits = method.predict(outputs) if stage.classifies else None
            if logits is not None:
                has_label, label = batch.label >= 0, logits.argmax(dim=1)
                correct += int(((label == batch.label) & has_label).sum())
                known += int(has_label.sum())
                rows.append(batch.row.numpy())
                labels.append(label.cpu().numpy())
            if not whole:
                continue
            losses = phase.losses(batch, outputs)
            values = {name: loss.value for name, loss in losses.items()}
            values |= method.diagnostics(batch, outputs)
            values["loss"] = weighted_sum({n: loss for n, loss in losses.items() if loss.selects})
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            loss_batches += 1
    scores = {name: value / loss_batches for name, value in sums.items()}
    if fabric.world_size > 1:
        counts = torch.tensor([correct, known], device=fabric.device)
        dist.all_reduce(counts)
        correct, known = counts.tolist()
    if known:
        scores["accuracy"] = correct / known
    return scores, Predictions(np.concatenate(rows), np.concatenate(labels))


Scores = dict[str, float]


class Selection:
    """Keeps of each stage the weights with the lowest loss, the highest accuracy, and the last."""

    def __init__(
        self, out: Path, stages: Sequence[Stage], wanted: str, network: Network, writes: bool
    ) -> None:
        """`wanted` is the checkpoint to use, "loss", "accuracy" or "last", where a stage has it.

        Of several processes one `writes` the files.
        """
        self.best: dict[str, dict[str, Scores]] = {stage.name: {} for stage in stages}
        """Validation scores, and the step, of each stage's checkpoints."""
        self._out, self._stages, self._wanted = out, stages, wanted
        self._network, self._writes = network, writes
        self._predicted: dict[Path, Predictions] = {}
        """Validation predictions of the checkpoints that this process kept."""

    def consider(self, stage: Stage, done: int, scores: Scores, predicted: Predictions) -> None:
        """Keep the weights after step `done` if they are the best yet by a score, or the last."""
        names = [name for name in ("loss", "accuracy") if name in scores]
        kept = [name for name in names if self._is_better(stage, name, scores[name])]
        for name in [*kept, "last"] if done == stage.steps else kept:
            self.best[stage.name][name] = {"step": float(done), **scores}
            file = self._file(stage, name)
            self._predicted[file] = predicted
            if self._writes:
                with atomic.atomic_file(file) as temporary:
                    save_weights(temporary, self._network.weights())

    def _is_better(self, stage: Stage, name: str, value: float) -> bool:
        if name not in self.best[stage.name]:
            return True
        previous = self.best[stage.name][name][name]
        better = value < previous if name == "loss" else value > previous
        return better or math.isnan(previous)

    def file(self, stage: Stage) -> Path:
        """The checkpoint of a finished stage that is used."""
        return self._file(stage, self._used(stage))

    def scores(self, stage: Stage) -> Scores | None:
        """Validation scores of the checkpoint that is used; None if it was not validated."""
        return self.best[stage.name].get(self._used(stage))

    def predicted(self, stage: Stage) -> Predictions | None:
        """Validation predictions of the checkpoint that is used, if this process kept it."""
        return self._predicted.get(self.file(stage))

    def write(self) -> None:
        """Write selection.json of the finished run."""
        used = {
            stage.name: "last" if after and after.continues else self._used(stage)
            for stage, after in zip_longest(self._stages, self._stages[1:])
        }
        found = {"used": used, "best": self.best}
        atomic.write_text(self._out / "selection.json", json.dumps(found, indent=2))

    def _file(self, stage: Stage, name: str) -> Path:
        return self._out / f"{stage.name}-{name}.safetensors"

    def _used(self, stage: Stage) -> str:
        if not stage.selects:
            return "last"
        found = self.best[stage.name]
        return self._wanted if self._wanted in found else "loss" if "loss" in found else "last"
