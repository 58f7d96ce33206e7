"""How much a decoder draws of an image that the mean image of its label does not hold."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deconfound.arrays import Codes, Rows
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.methods.contract import Method
from deconfound.runtime.seeds import numpy_stream

MOST = 512
"""Images at most that the share comes from."""
BATCH = 64


@torch.inference_mode()
def explained_share(
    method: Method, intensity: Intensity, screen: Screen, rows: Rows, labels: Codes, seed: int
) -> float | None:
    """1 − Σ (x − x̂)² / Σ (x − m)² over all pixels of at most 512 of `rows`, drawn by `seed`.

    x is an image (C, H, W) as the network sees it, x̂ the image decoded from its own content and
    style, m the mean of the images of its label, (N,) `labels` of the screen, whose sum of squares
    is corrected for the mean being of the same images. At most 1, 0 for a decoder that draws no
    more than m does, negative for a worse one. None where no label has 2 of the rows or its images
    do not differ.
    """
    drawn = numpy_stream(seed, "explained share").permutation(rows[labels[rows] >= 0])[:MOST]
    code, counts = labels[drawn], np.bincount(labels[drawn])
    kept = np.sort(drawn[counts[code] > 1]) if len(drawn) else drawn
    if not len(kept):
        return None
    missed, images = 0.0, []
    for start in range(0, len(kept), BATCH):
        pixels = screen.read(kept[start : start + BATCH])
        image = intensity(torch.from_numpy(pixels)).float()
        decoded = _reconstructed(method, image)
        if decoded is None:
            return None
        if decoded.shape != image.shape:
            image = interpolate(image, size=tuple(decoded.shape[2:]), mode="area")
        missed += float((image - decoded).double().square().sum())
        images.append(image)
    total = _beyond_mean(torch.cat(images), labels[kept])
    return 1 - missed / total if total > 0 else None


def _reconstructed(method: Method, image: Tensor) -> Tensor | None:
    blocks = method.embed(image)
    decoded = method.swap(blocks["content"], blocks["style"])
    return None if decoded is None else decoded.float()


def _beyond_mean(images: Tensor, labels: Codes) -> float:
    total = 0.0
    for label in np.unique(labels):
        own = images[torch.from_numpy(labels == label)].double()
        squares = float((own - own.mean(dim=0)).square().sum())
        total += squares * len(own) / (len(own) - 1)
    return total
