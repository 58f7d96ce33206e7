"""Batches of a screen, read ahead of the step that needs them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Rows
from deconfound.data.loading.augment import dihedral, random_turns
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.runtime.seeds import torch_stream

PART = 262_144
"""Values scaled at a time on a CPU; so few stay in its cache."""
READ_AHEAD = "read ahead"
"""Name of the thread that reads a batch before it is asked for."""


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
        # A second thread of the processor has time for it where the network takes one.
        scales_ahead = self._device.type == "cpu" and torch.get_num_threads() == 1

        def read(rows: Rows) -> Tensor:
            pixels = self._pixels(rows)
            return self._scaled(rows, pixels) if scales_ahead else pixels

        with closing(_ahead(read, batches)) as ready:
            for rows, image in ready:
                yield self._assemble(rows, image if scales_ahead else self._scaled(rows, image))

    def read(self, rows: Rows) -> Batch:
        """The batch of `rows`."""
        return self._assemble(rows, self._scaled(rows, self._pixels(rows)))

    def _pixels(self, rows: Rows) -> Tensor:
        """As stored; in memory that a GPU copies by itself."""
        if self._device.type == "cuda":
            return _pinned(self._screen, rows)
        return torch.from_numpy(self._screen.read(rows))

    @torch.no_grad()
    def _scaled(self, rows: Rows, pixels: Tensor) -> Tensor:
        """Float32, in the layout and on the device; on a CPU in parts that stay in its cache."""
        pixels = self._on_device(pixels)
        group = None if self._group is None else self._group[_contiguous(rows)]
        if self._device.type != "cpu":
            whole: Tensor = self._intensity(pixels, group)
            return whole.to(memory_format=self._layout)
        image = torch.empty(pixels.shape, dtype=torch.float32, memory_format=self._layout)
        step = max(1, PART // max(1, pixels[:1].numel()))
        for start in range(0, len(pixels), step):
            part = slice(start, start + step)
            of_part = None if group is None else group[part]
            image[part] = self._intensity(pixels[part], of_part)
        return image

    def _assemble(self, rows: Rows, image: Tensor) -> Batch:
        row = _contiguous(rows)
        return Batch(
            image=image,
            label=self._on_device(self._label[row]),
            environment=self._on_device(self._environment[row]),
            row=row,
        )

    def _on_device(self, values: Tensor) -> Tensor:
        """A copy to a GPU is made of pinned memory, so that it waits for no batch in work there."""
        if self._device.type != "cuda":
            return values.to(self._device)
        return values.pin_memory().to(self._device, non_blocking=True)


def augmented(batch: Batch, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """The batch with every image flipped and turned at random, a pure function of (seed, step).

    Where the batch is every `ranks`-th row of a larger one, starting at `rank`, its images are
    turned as there.
    """
    generator = torch_stream(seed, "augment", step)
    turns = random_turns(batch.image, len(batch) * ranks, generator)[rank::ranks]
    image = dihedral(batch.image, turns[: len(batch)])
    return replace(batch, image=image)


def _ahead(
    read: Callable[[Rows], Tensor], batches: Iterable[Rows], depth: int = 2
) -> Generator[tuple[Rows, Tensor], None, None]:
    """`read` in a thread, at most `depth` batches ahead; its errors are raised here."""
    ready: queue.Queue[tuple[Rows, Tensor] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[Rows, Tensor] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def fill() -> None:
        try:
            for rows in batches:
                if stopped.is_set():
                    return
                put((rows, read(rows)))
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    reader = threading.Thread(target=fill, name=READ_AHEAD, daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()


def _contiguous(rows: Rows) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows))


def _pinned(screen: Screen, rows: Rows) -> Tensor:
    """The images of `rows` in memory that a GPU copies by itself."""
    kind = torch.from_numpy(np.empty(0, screen.dtype)).dtype
    pixels = torch.empty((len(rows), *screen.image_shape), dtype=kind, pin_memory=True)
    screen.read(rows, out=pixels.numpy())
    return pixels
