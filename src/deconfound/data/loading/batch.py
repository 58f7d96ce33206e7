"""Batches of a screen, read ahead of the step that needs them."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Codes, Rows
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.runtime.prefetch import in_order

PART = 262_144
"""Values scaled at a time on a CPU: few enough to stay in its cache."""
READ_AHEAD = "read ahead"
"""Start of the name of the thread that reads a batch before it is asked for."""
AHEAD = 3
"""Batches begun or read while one is in use."""


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
    """Number of trailing rows that are held-out images, without label and environment."""
    partners: int = 0
    """Number of trailing rows that serve as style images for the rows before them."""

    def __len__(self) -> int:
        return len(self.row)


class BatchReader:
    """Reads rows of a screen as batches on a device."""

    def __init__(
        self,
        screen: Screen,
        *,
        intensity: Intensity,
        device: torch.device,
        label: Codes | None = None,
        environment: Codes | None = None,
        group: Codes | None = None,
        channels_last: bool = True,
    ) -> None:
        """`label` and `environment` are the codes (N,) of every row; all are missing if not given.

        So is `group`, which `intensity` needs if it was fitted with groups.
        """
        missing = np.full(len(screen), -1, dtype=np.int64)
        self._group = None if group is None else torch.from_numpy(group)
        self._screen = screen
        self._label = torch.from_numpy(missing if label is None else label)
        self._environment = torch.from_numpy(missing if environment is None else environment)
        self._intensity = intensity.to(device)
        self._device = device
        channels_last = channels_last and not screen.holds_profiles
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch, None, None]:
        """One batch for every array of rows, in order; the next is read while one is in use."""
        # If the network uses one thread, another core is free to scale the next batch.
        scales_ahead = self._device.type == "cpu" and torch.get_num_threads() == 1

        remaining = iter(batches)

        def read_next(_: None) -> tuple[Rows, Tensor] | None:
            """The next rows, drawn in this thread as well, and their images; None at the end."""
            if (rows := next(remaining, None)) is None:
                return None
            pixels = self._pixels(rows)
            return rows, self._scaled(rows, pixels) if scales_ahead else pixels

        work = in_order(read_next, repeat(None), threads=1, ahead=AHEAD, name=READ_AHEAD)
        with closing(work) as ready:
            for read in ready:
                if read is None:
                    return
                rows, image = read
                yield self._assemble(rows, image if scales_ahead else self._scaled(rows, image))

    def read(self, rows: Rows) -> Batch:
        """The batch of `rows`."""
        return self._assemble(rows, self._scaled(rows, self._pixels(rows)))

    def _pixels(self, rows: Rows) -> Tensor:
        """The images of `rows` as stored; for a GPU in pinned memory."""
        screen = self._screen
        if self._device.type != "cuda":
            return torch.from_numpy(screen.read(rows))
        kind = torch.from_numpy(np.empty(0, screen.dtype)).dtype
        pixels = torch.empty((len(rows), *screen.image_shape), dtype=kind, pin_memory=True)
        screen.read(rows, out=pixels.numpy())
        return pixels

    @torch.no_grad()
    def _scaled(self, rows: Rows, pixels: Tensor) -> Tensor:
        """`pixels` scaled to float32 on the device; on a CPU in parts that stay in its cache."""
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
        """`values` on the device; to a GPU from pinned memory, without waiting for its work."""
        if self._device.type != "cuda":
            return values.to(self._device)
        return values.pin_memory().to(self._device, non_blocking=True)


def _contiguous(rows: Rows) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows))
