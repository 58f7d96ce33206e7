"""Style codes: of rows of a screen, in a bank for each environment, and their means."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Rows
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.methods.contract import Imputer
from deconfound.runtime.seeds import numpy_stream

AT_ONCE = 128
"""Most images that an imputer receives at once."""
MEAN_OF = 256
"""Most images that the mean style of an environment is taken over."""

Styles = Callable[[Rows], Tensor]
"""Rows (B,) of a screen to their styles (B, S) float32."""


def styles_of(
    imputer: Imputer,
    intensity: Intensity,
    screen: Screen,
    environment: Rows,
    group: Rows | None,
    device: torch.device,
) -> Styles:
    """A function from rows of a screen to the styles that an imputer gives them.

    `environment` (N,) holds each row's training environment, −1 where unknown. `group` (N,) holds
    each row's percentile group, where `intensity` has groups.
    """
    reader = BatchReader(
        screen, intensity=intensity, device=device, environment=environment, group=group
    )

    @torch.no_grad()
    def styles(rows: Rows) -> Tensor:
        batches = reader.stream(np.split(rows, np.arange(AT_ONCE, len(rows), AT_ONCE)))
        return torch.cat([imputer.style(one.image, one.environment).float() for one in batches])

    return styles


def style_bank(
    styles: Styles,
    members: Sequence[Rows],
    names: Sequence[str],
    count: int,
    images: int,
    seed: int,
) -> Tensor:
    """(K, `count`, S) float32: `count` styles for each environment, from its `members`.

    Each style is the mean over `images` rows, drawn by seed: without replacement until the members
    are used up, then with replacement.
    """
    found = []
    for name, rows in zip(names, members, strict=True):
        stream = numpy_stream(seed, "style bank", name)
        drawn = stream.permutation(rows)[: count * images]
        again = stream.choice(rows, count * images - len(drawn))
        found.append(styles(np.concatenate([drawn, again])).reshape(count, images, -1).mean(dim=1))
    return torch.stack(found)


def mean_styles(styles: Styles, members: Sequence[Rows], names: Sequence[str], seed: int) -> Tensor:
    """(E, S) float32: for each environment the mean over at most 256 `members`, drawn by seed."""
    found = []
    for name, rows in zip(names, members, strict=True):
        drawn = numpy_stream(seed, "mean style", name).permutation(rows)[:MEAN_OF]
        found.append(styles(np.sort(drawn)).mean(dim=0))
    return torch.stack(found)
