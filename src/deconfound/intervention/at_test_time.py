"""Test-time correction: an image is brought to training environments before it is embedded."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.intervention.intervention import Intervention, load_intervention
from deconfound.intervention.relative_style import Origins, origins_of, styles_anywhere
from deconfound.methods.contract import Method, Tensors
from deconfound.runs.run import Run
from deconfound.runtime.seeds import numpy_stream


@dataclass(frozen=True)
class Correction:
    """Images in styles of training environments, drawn for each row by itself, or in their mean.

    Pernice et al., Interventional Style Transfer, 2023, section 3; the paper draws once.
    """

    intervention: Intervention
    draws: int
    """1 or more."""
    seed: int
    origins: Origins | None = None
    """Where the rows of the screen were taken; None where styles are not relative."""

    def styles(self, row: Tensor) -> Tensor:
        """Numbers (B, draws) int64 of the styles that the rows (B,) of a screen are brought to.

        Those of a row depend on the seed and on the row alone, and the first ones not on how many
        are drawn.
        """
        many = len(self.intervention.targets)
        streams = (numpy_stream(self.seed, "correction", one) for one in row.tolist())
        return torch.from_numpy(np.stack([s.integers(many, size=self.draws) for s in streams]))


def correction_of(run: Run, screen: Screen, device: torch.device) -> Correction | None:
    """The correction that a run asks for, on a device; None for one without.

    Raises UserError where relative styles need environments that the screen does not name.
    """
    draws = run.config.intervention.correction_draws
    if run.config.intervention.intervene is None or draws == 0:
        return None
    intervention = load_intervention(run.path, screen).to(device)
    seed, over = run.config.seed, run.config.intervention.relative_style
    if over is None:
        return Correction(intervention, draws, seed)
    styles = styles_anywhere(run, screen, intervention.imputer, intervention.intensity)
    return Correction(intervention, draws, seed, origins_of(run, screen, styles, over, seed))


def represent(
    method: Method, batch: Batch, correction: Correction | None
) -> tuple[Tensors, Tensor | None]:
    """What a method makes of a batch: `embed`, and the predicted labels (B,) int64.

    With a correction representations are averaged over its draws, and the label is that of the
    highest mean probability. None for the labels where the method predicts none.
    """
    if correction is None:
        embedded = method.embed(batch.image)
        logits = method.predict(embedded)
        return embedded, None if logits is None else logits.argmax(dim=1)
    source = None if correction.origins is None else correction.origins.of(batch.row)
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
