"""Losses with a discriminator, of environments or of real and generated images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from deconfound.losses.gather import global_mean


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], representation: Tensor, environment: Tensor
) -> Tensor:
    """Mean squared norm of the gradient of the discriminator's loss at its input; 0 without rows.

    ‖∂ cross_entropy(D(r), e) / ∂r‖² of every row r of known environment: the penalty of DANN in
    DomainBed (Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021).
    `discriminator` maps (B, D) floating to logits (B, K), row by row; `representation` (B, D)
    floating; `environment` (B,) int64, −1 = missing. Returns () floating, differentiable in the
    representation and in the discriminator; the mean is over the rows of every process. Raises no
    errors of its own.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        point = representation
        if not point.requires_grad:
            point = point.detach().requires_grad_()
        total = functional.cross_entropy(
            discriminator(point), environment, ignore_index=-1, reduction="sum"
        )
        (slope,) = torch.autograd.grad(total, point, create_graph=differentiable)
    return global_mean(slope.square().sum(), (environment >= 0).sum())


def real_loss(logits: Tensor) -> Tensor:
    """Mean of −log sigmoid(logit): a critic's loss on real images, a generator's on its images.

    logits (B,) floating, > 0 for "real". Returns (), 0 without rows; the mean is over the rows of
    every process. The non-saturating form of Goodfellow et al., Generative Adversarial Networks,
    2014. Raises no errors of its own.
    """
    return global_mean(functional.softplus(-_at_least_float32(logits)).sum(), len(logits))


def fake_loss(logits: Tensor) -> Tensor:
    """Mean of −log(1 − sigmoid(logit)): a critic's loss on generated images.

    logits (B,) as in `real_loss`, which is its counterpart (Goodfellow et al., 2014). Returns (),
    0 without rows. Raises no errors of its own.
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
