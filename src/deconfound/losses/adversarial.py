"""What a discriminator adds to a loss: one of environments, or one of real images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from deconfound.losses.gather import global_mean


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], representation: Tensor, environment: Tensor
) -> Tensor:
    """Mean squared length of the gradient of the discriminator's loss in its input; 0 of no rows.

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
    """Mean cross-entropy of logits that should say "real", log(1 + exp(−logit)); 0 of no rows.

    On images that a generator drew it is the generator's non-saturating loss (Goodfellow et al.,
    2014). logits (B,) floating; returns () in float32 or wider; the mean is over the rows of every
    process. Raises no errors of its own.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return global_mean(functional.softplus(-wide).sum(), len(wide))


def fake_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits that should say "drawn", log(1 + exp(logit)); 0 of no rows.

    Goodfellow et al., 2014. Shapes, range and errors are those of `real_loss`.
    """
    return real_loss(-logits)


def r1_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """½ ‖∂ logit / ∂ image‖², summed over pixels, mean over images; 0 of no rows.

    R1 of Mescheder et al., Which Training Methods for GANs do actually Converge, 2018, for real
    images. logits (B,) floating, each computed from its own row of `image` (B, C, H, W), which
    requires a gradient. Returns () in float32 or wider, differentiable in the discriminator; the
    mean is over the rows of every process. Raises no errors of its own.
    """
    (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    wide = slope.to(torch.promote_types(slope.dtype, torch.float32))
    return 0.5 * global_mean(wide.square().sum(), len(image))
