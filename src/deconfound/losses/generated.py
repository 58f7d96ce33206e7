"""Losses of generated images: of a critic, and distances to their style and content images.

Every mean over images is over the images of all processes. Only `r1_penalty` raises an error.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deconfound.losses.gather import global_mean
from deconfound.nets.ist import gram, instance_normalised


def real_loss(logits: Tensor) -> Tensor:
    """Mean of −log sigmoid(logit): a critic's loss on real images, a generator's on its images.

    logits (B,) floating, > 0 for "real". Returns (), 0 without rows; the mean is over the rows of
    every process. The non-saturating form of Goodfellow et al., Generative Adversarial Networks,
    2014.
    """
    return global_mean(functional.softplus(-_at_least_float32(logits)).sum(), len(logits))


def fake_loss(logits: Tensor) -> Tensor:
    """Mean of −log(1 − sigmoid(logit)): a critic's loss on generated images.

    logits (B,) as in `real_loss`, which is its counterpart (Goodfellow et al., 2014). Returns (),
    0 without rows.
    """
    return global_mean(functional.softplus(_at_least_float32(logits)).sum(), len(logits))


def r1_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """0.5 · ‖∂ logit / ∂ image‖², summed over pixels, averaged over images; for real images.

    logits (B,) of a critic on image (B, ...), which requires a gradient, row by row. Returns (),
    differentiable in the critic, 0 without rows. Mescheder et al., Which Training Methods for GANs
    do actually Converge?, 2018, eq. 9, without gamma. Raises RuntimeError if the logits do not
    depend on the image.
    """
    (slope,) = torch.autograd.grad(_at_least_float32(logits).sum(), image, create_graph=True)
    return global_mean(0.5 * slope.square().sum(), len(logits))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def style_loss(drawn: Sequence[Tensor], style: Sequence[Tensor]) -> Tensor:
    """L1 distance of the Gram matrices of drawn images and of their style images.

    The sum over the entries of a matrix, the mean over layers and images. Both are maps
    (B, C, H, W), one for each layer, with row i of pair i. Returns (). Pernice et al.,
    Interventional Style Transfer, 2023, eq. 3. Deviation: eq. 3 as printed compares with the
    content image, which would work against the transfer.
    """
    total = torch.stack(
        [(gram(one) - gram(other)).abs().sum() for one, other in zip(drawn, style, strict=True)]
    ).mean()
    return global_mean(total, len(drawn[0]))


def mean_style_loss(drawn: Sequence[Tensor], gram_of_target: Sequence[Tensor]) -> Tensor:
    """L1 distance of the Gram matrices of drawn images from those of their target environments.

    `drawn` are maps (B, C, H, W), one for each layer, and `gram_of_target` the mean Gram matrices
    (B, C, C) of the environment of each. The mean over the entries, relative to the mean absolute
    entry of the target, the mean over layers and images. Returns (). Not in the paper, whose eq. 3
    sums over the entries against one image, and so pays for copying that image's cell.
    """
    each = [
        (gram(one) - target).abs().mean(dim=(1, 2)) / target.abs().mean(dim=(1, 2)).clamp(min=1e-8)
        for one, target in zip(drawn, gram_of_target, strict=True)
    ]
    return global_mean(torch.stack(each).mean(dim=0).sum(), len(drawn[0]))


def spread_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) against equal probabilities, less its least, log K.

    0 where a classifier cannot tell; of an adversary that names where images were taken. Returns
    (), 0 without rows.
    """
    with torch.autocast(logits.device.type, enabled=False):
        per_row = -_at_least_float32(logits).log_softmax(dim=1).mean(dim=1)
    return global_mean((per_row - math.log(logits.shape[1])).sum(), len(logits))


def pixel_distance(drawn: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference of pixels, (B, C, H, W) each, a scalar.

    Pernice et al., Interventional Style Transfer, 2023, eq. 4 and the first term of eq. 5.
    """
    return global_mean((drawn - image).abs().mean(dim=(1, 2, 3)).sum(), len(image))


def row_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of rows (B, ...), a scalar: images, or styles; 0 without rows.

    Choi et al., StarGAN v2, 2020, eq. 2 to 4.
    """
    per_row = (first - second).abs().flatten(1).mean(dim=1)
    return global_mean(per_row.sum(), len(per_row))


def content_distance(drawn: Sequence[Tensor], content: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of maps whose channels have mean 0 and sd 1, mean over layers.

    Both are maps (B, C, H, W), one for each layer. Returns (). Pernice et al., Interventional Style
    Transfer, 2023, second term of eq. 5. Deviation: maps are instance-normalised, without the
    statistics that the style loss is to change.
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
    2023, eq. 6.
    """
    with torch.autocast(drawn.device.type, enabled=False):
        wide = torch.promote_types(drawn.dtype, torch.float32)
        target = content.detach().to(wide).softmax(dim=1)
        total = functional.cross_entropy(drawn.to(wide), target, reduction="sum")
    return global_mean(total, len(drawn))
