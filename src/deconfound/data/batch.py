"""Batches of a screen, read ahead of the step that needs them."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconfound.data.augment import dihedral, random_turns
from deconfound.data.intensity import Intensity
from deconfound.data.screen import Screen
from deconfound.streams import torch_stream

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """What a method sees of the data."""

    image: Tensor
    """(B, C, H, W), or profiles (B, D), float32, values as `Intensity` leaves them."""
    label: Tensor
    """(B,) int64; −1 where missing."""
    environment: Tensor
    """(B,) int64; −1 where missing or never seen in training."""
    row: Tensor
    """(B,) int64 row of the screen's table."""
    held_out: int = 0
    """So many rows at the end are held-out images, without label and environment."""
    partners: int = 0
    """So many rows at the end are drawn by themselves, to be the style of those before them."""

    def __len__(self) -> int:
        return len(self.row)


class BatchReader:
    """Reads rows of a screen as batches on a device."""

    def __init__(
        self,
        screen: Screen,
        label: Rows,
        environment: Rows,
        intensity: Intensity,
        device: torch.device,
        channels_last: bool = False,
        group: Rows | None = None,
    ) -> None:
        """`label` and `environment` are the codes (N,) of every row of the screen.

        So is `group`, which `intensity` needs if it was fitted with groups.
        """
        self._group = None if group is None else torch.from_numpy(group)
        self._screen = screen
        self._label = torch.from_numpy(label)
        self._environment = torch.from_numpy(environment)
        self._intensity = intensity.to(device)
        self._device = device
        channels_last = channels_last and not screen.holds_profiles
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch, None, None]:
        """One batch for every array of rows, in order; the next is read while one is in use."""
        for rows, pixels in _read_ahead(self._screen, batches):
            yield self._assemble(rows, pixels)

    def read(self, rows: Rows) -> Batch:
        """The batch of `rows`."""
        return self._assemble(rows, self._screen.read(rows))

    @torch.no_grad()
    def _assemble(self, rows: Rows, pixels: npt.NDArray[Any]) -> Batch:
        row = torch.from_numpy(np.ascontiguousarray(rows))
        raw = torch.from_numpy(pixels).to(self._device)
        group = None if self._group is None else self._group[row]
        image = self._intensity(raw, group).to(memory_format=self._layout)
        return Batch(
            image=image,
            label=self._label[row].to(self._device),
            environment=self._environment[row].to(self._device),
            row=row,
        )


def augmented(batch: Batch, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """The batch with every image flipped and turned at random, a pure function of (seed, step).

    Where the batch is every `ranks`-th row of a larger one, starting at `rank`, its images are
    turned as there.
    """
    generator = torch_stream(seed, "augment", step)
    turns = random_turns(batch.image, len(batch) * ranks, generator)[rank::ranks]
    image = dihedral(batch.image, turns[: len(batch)])
    return replace(batch, image=image)


def _read_ahead(
    screen: Screen, batches: Iterable[Rows], depth: int = 2
) -> Iterator[tuple[Rows, npt.NDArray[Any]]]:
    """Read in a thread, at most `depth` batches ahead; its errors are raised here."""
    ready: queue.Queue[tuple[Rows, npt.NDArray[Any]] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[Rows, npt.NDArray[Any]] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for rows in batches:
                if stopped.is_set():
                    return
                put((rows, screen.read(rows)))
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()
