"""Test-time correction: an image is brought to training environments before it is embedded."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.intervention.intervention import Intervention, load_intervention
from deconfound.intervention.relative_style import SourceStyles, source_styles_of, styles_anywhere
from deconfound.methods.contract import Method, Tensors
from deconfound.runs.run import Run
from deconfound.runtime.seeds import numpy_stream


@dataclass(frozen=True)
class Correction:
    """Brings images to styles of training environments, drawn for each row, or to their mean.

    Pernice et al., Interventional Style Transfer, 2023, section 3; the paper draws once.
    """

    intervention: Intervention
    draws: int
    """1 or more."""
    seed: int
    source_styles: SourceStyles | None = None
    """The mean style of each row's environment; None where styles are not relative."""

    def styles(self, row: Tensor) -> Tensor:
        """The targets (B, draws) int64 that the rows (B,) of a screen are brought to.

        A row's targets depend on the seed and the row alone; more draws only add to them.
        """
        many = len(self.intervention.targets)
        streams = (numpy_stream(self.seed, "correction", one) for one in row.tolist())
        return torch.from_numpy(np.stack([s.integers(many, size=self.draws) for s in streams]))


def correction_of(run: Run, screen: Screen, device: torch.device) -> Correction | None:
    """The correction that a run asks for, on a device; None if it asks for none.

    Raises UserError if styles are relative and a row of the screen has no environment.
    """
    draws = run.config.intervention.correction_draws
    if run.config.intervention.intervene is None or draws == 0:
        return None
    intervention = load_intervention(run.path, screen).to(device)
    seed, over = run.config.seed, run.config.intervention.relative_style
    if over is None:
        return Correction(intervention, draws, seed)
    styles = styles_anywhere(run, screen, intervention.imputer, intervention.intensity)
    return Correction(intervention, draws, seed, source_styles_of(run, screen, styles, over, seed))


def represent(
    method: Method, batch: Batch, correction: Correction | None
) -> tuple[Tensors, Tensor | None]:
    """Representations of a batch by name, (B, D) each, and its predicted labels (B,) int64.

    With a correction, representations are averaged over its draws, and the label has the highest
    mean probability. The labels are None where the method predicts none.
    """
    if correction is None:
        embedded = method.embed(batch.image)
        logits = method.predict(embedded)
        return embedded, None if logits is None else logits.argmax(dim=1)
    source = None if correction.source_styles is None else correction.source_styles.of(batch.row)
    total: Tensors = {}
    probability: Tensor | None = None
    for style in correction.styles(batch.row).unbind(dim=1):
        embedded = method.embed(correction.intervention.impute(batch.image, style, source))
        logits = method.predict(embedded)
        if logits is not None:
            share = logits.float().softmax(dim=1) / correction.draws
            probability = share if probability is None else probability + share
        for name, values in embedded.items():
            total[name] = total.get(name, 0.0) + values.float() / correction.draws
    return total, None if probability is None else probability.argmax(dim=1)
