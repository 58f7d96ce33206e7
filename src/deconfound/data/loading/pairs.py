"""The content and style images of a batch, by the partners that it was joined with."""

from typing import NamedTuple

from torch import Tensor

from deconfound.data.loading.batch import Batch


class Pairs(NamedTuple):
    """P content images and K style images for each: all first ones, then all second ones, …"""

    content: Tensor
    """(P, C, H, W)."""
    source: Tensor
    """(P,) int64, the environments of the content images."""
    style: Tensor
    """(K · P, C, H, W)."""
    environment: Tensor
    """(K · P,) int64, the environments of the style images."""
    label: Tensor
    """(K · P,) int64, their labels."""


def pairs(batch: Batch) -> Pairs:
    """Style images are the batch's partners; without partners, the row before each row."""
    own = len(batch) - batch.partners
    image, environment, label = batch.image, batch.environment, batch.label
    if not batch.partners:
        rolled = (one.roll(1, 0) for one in (image, environment, label))
        return Pairs(image, environment, *rolled)
    return Pairs(image[:own], environment[:own], image[own:], environment[own:], label[own:])
