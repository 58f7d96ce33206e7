"""What a discriminator of environments adds to a loss."""

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
