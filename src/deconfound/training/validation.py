"""Losses, accuracy and predictions on validation rows."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from deconfound.arrays import Rows
from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Method, Phase, Stage, weighted_sum


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

    The scores are the losses of `phase` and the diagnostics, averaged over full batches, and the
    accuracy over all rows, unless the stage does not classify or no row has a known label.
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
            values["loss"] = weighted_sum(losses)
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
