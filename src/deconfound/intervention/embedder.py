"""Representations and predicted labels of rows of a screen, batch by batch.

With test-time correction an image is brought to training environments before it is embedded.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Codes, Rows
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.intervention.intervention import Intervention, load_intervention
from deconfound.intervention.styles import SourceStyles, source_styles_of, styles_anywhere
from deconfound.methods.contract import Method, Tensors
from deconfound.runs.context import learn_contexts
from deconfound.runs.run import Run, learn_groups
from deconfound.runtime.seeds import numpy_stream

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        embedded = method.embed_in(batch.image, batch.environment)
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


class Embedded(NamedTuple):
    """What a method makes of a batch of rows, on its device."""

    representations: Tensors
    """By name, (B, D) float32."""
    predicted: Tensor | None
    """(B,) int64 codes of the run's labels; None where the method predicts none."""


class Embedder:
    """Embeds rows of a screen with a method that is on the device of `fabric`."""

    def __init__(
        self,
        method: Method,
        intensity: Intensity,
        screen: Screen,
        fabric: "Fabric",
        *,
        group: Rows | None = None,
        environment: Codes | None = None,
        correction: Correction | None = None,
    ) -> None:
        """`group` (N,) is that of `learn_groups`, and `correction` that of `correction_of`.

        `environment` (N,) is that of `learn_contexts`.
        """
        self.method = method
        self._fabric, self._correction = fabric, correction
        self._reader = BatchReader(
            screen, intensity=intensity, device=fabric.device, group=group, environment=environment
        )

    @classmethod
    def of_run(
        cls, run: Run, screen: Screen, fabric: "Fabric", selection: str | None = None
    ) -> "Embedder":
        """A run's method with the correction that the run asks for.

        `selection` is that of `Run.load`. Raises UserError if run and screen do not fit.
        """
        method, intensity = run.load(screen, selection)
        group = learn_groups(run, screen, intensity)
        method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        made_of = method, intensity, screen, fabric
        plain = cls(*made_of, group=group, correction=correction_of(run, screen, fabric.device))
        with fabric.autocast():
            environment = learn_contexts(run, screen, method, plain._reader)
        if environment is None:
            return plain
        return cls(*made_of, group=group, environment=environment)

    @torch.inference_mode()
    def stream(self, batches: Iterable[Rows]) -> Generator[Embedded, None, None]:
        """Embed every array of rows, in order; the next is read while one is in use."""
        with closing(self._reader.stream(batches)) as read:
            for batch in read:
                with self._fabric.autocast():
                    found, predicted = represent(self.method, batch, self._correction)
                named = {name: values.float() for name, values in found.items()}
                yield Embedded(named, None if predicted is None else predicted.long())

    def labels(self, rows: Rows, size: int) -> Rows | None:
        """The predicted codes (B,) of rows (B,), `size` of them at a time.

        None where the method predicts no label.
        """
        codes = [np.empty(0, dtype=np.int64)]
        for embedded in self.stream(in_batches(rows, size)):
            if embedded.predicted is None:
                return None
            codes.append(embedded.predicted.cpu().numpy())
        return np.concatenate(codes)


def in_batches(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in batches of `size`, the last one shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
