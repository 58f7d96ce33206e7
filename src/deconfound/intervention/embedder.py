"""Representations and predicted labels of rows of a screen, batch by batch."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Rows
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.intervention.at_test_time import Correction, correction_of, represent
from deconfound.methods.contract import Method, Tensors
from deconfound.runs.run import Run, group_codes

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        correction: Correction | None = None,
    ) -> None:
        """`group` (N,) is what `group_codes` gives, and `correction` what `correction_of` gives."""
        self.method = method
        self._fabric, self._correction = fabric, correction
        self._reader = BatchReader(screen, intensity=intensity, device=fabric.device, group=group)

    @classmethod
    def of_run(
        cls, run: Run, screen: Screen, fabric: "Fabric", selection: str | None = None
    ) -> "Embedder":
        """A run's method with the correction that the run asks for.

        `selection` is that of `Run.load`. Raises UserError if run and screen do not fit.
        """
        method, intensity = run.load(screen, selection)
        method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        correction = correction_of(run, screen, fabric.device)
        group = group_codes(run, screen)
        return cls(method, intensity, screen, fabric, group=group, correction=correction)

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
