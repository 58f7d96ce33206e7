"""Distances of generated images from their style images and content images.

Every mean over images is over the images of all processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deconfound.losses.gather import global_mean
from deconfound.nets.tapped import instance_normalised


def gram(map: Tensor) -> Tensor:
    """Products of the channels of a map, summed over its pixels and divided by C · H · W.

    map (B, C, H, W) floating -> (B, C, C), symmetric, at least float32: Li et al., Demystifying
    Neural Style Transfer, 2017. Raises no errors of its own.
    """
    with torch.autocast(map.device.type, enabled=False):
        flat = map.flatten(2).to(torch.promote_types(map.dtype, torch.float32))
        return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def style_loss(drawn: Sequence[Tensor], style: Sequence[Tensor]) -> Tensor:
    """L1 distance of the Gram matrices of drawn images and of their style images.

    The sum over the entries of a matrix, the mean over layers and images. Both are maps
    (B, C, H, W), one for each layer, with row i of pair i. Returns (). Pernice et al.,
    Interventional Style Transfer, 2023, eq. 3. Deviation: eq. 3 as printed compares with the
    content image, which would work against the transfer. Raises no errors of its own.
    """
    total = torch.stack(
        [(gram(one) - gram(other)).abs().sum() for one, other in zip(drawn, style, strict=True)]
    ).mean()
    return global_mean(total, len(drawn[0]))


def pixel_distance(drawn: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference of pixels, (B, C, H, W) each, a scalar.

    Pernice et al., Interventional Style Transfer, 2023, eq. 4 and the first term of eq. 5. Raises
    no errors of its own.
    """
    return global_mean((drawn - image).abs().mean(dim=(1, 2, 3)).sum(), len(image))


def row_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of rows (B, ...), a scalar: images, or styles; 0 without rows.

    Choi et al., StarGAN v2, 2020, eq. 2 to 4. Raises no errors of its own.
    """
    per_row = (first - second).abs().flatten(1).mean(dim=1)
    return global_mean(per_row.sum(), len(per_row))


def content_distance(drawn: Sequence[Tensor], content: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of maps whose channels have mean 0 and sd 1, mean over layers.

    Both are maps (B, C, H, W), one for each layer. Returns (). Pernice et al., Interventional Style
    Transfer, 2023, second term of eq. 5. Deviation: maps are instance-normalised, without the
    statistics that the style loss is to change. Raises no errors of its own.
    """
    return torch.stack(
        [
            pixel_distance(instance_normalised(one), instance_normalised(other))
            for one, other in zip(drawn, content, strict=True)
        ]
    ).mean()


def class_matching(drawn: Tensor, content: Tensor) -> Tensor:
    """Cross-entropy of predictions on drawn images against those on their content images.

    Logits (B, K) of the same classifier. The target is the softmax of `content`, not the label.
    Returns (), at least the entropy of the target. Pernice et al., Interventional Style Transfer,
    2023, eq. 6. Raises no errors of its own.
    """
    with torch.autocast(drawn.device.type, enabled=False):
        wide = torch.promote_types(drawn.dtype, torch.float32)
        target = content.detach().to(wide).softmax(dim=1)
        total = functional.cross_entropy(drawn.to(wide), target, reduction="sum")
    return global_mean(total, len(drawn))
