"""Cross-entropies of labels, and penalties on differences between environments.

All use the rows of all ranks: every rank has the same value, and gradients of parameters add up
over ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deconfound.losses.gather import global_mean, whole_batch


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the rows of all processes whose target is known; 0 without any.

    logits (B, K) float; target (B,) int64, −1 = missing.
    """
    total = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    return global_mean(total, (target >= 0).sum())


def environment_risks(
    logits: Tensor, label: Tensor, environment: Tensor, environments: int
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in each environment, over the rows of all ranks.

    logits (B, K) floating; label and environment (B,) int64; rows with −1 (missing) are left out.
    Returns risks (environments,), 0 for an absent environment, and rows (environments,) int64.
    Every rank has the same values; gradients of parameters add up over ranks.
    """
    logits, label, environment = whole_batch(logits, label, environment)
    known = (label >= 0) & (environment >= 0)
    label, environment = label[known], environment[known]
    losses = nn.functional.cross_entropy(logits[known], label, reduction="none")
    sums = losses.new_zeros(environments).index_add(0, environment, losses)
    rows = torch.bincount(environment, minlength=environments)
    return sums / rows.clamp(min=1), rows


def coral_penalty(features: Tensor, environment: Tensor) -> Tensor:
    """Distance between the means and covariances of environments.

    Sun & Saenko 2016 (Deep CORAL) as in DomainBed and WILDS: for each pair of environments
    mean((μ_i − μ_j)²) + mean((C_i − C_j)²), C with n − 1, averaged over pairs. That average is
    twice the variance over environments, so no pair is formed.

    features (B, D) floating; environment (B,) int64, −1 = missing. Returns a scalar, at least 0; 0
    where fewer than two environments have two rows. Environments of one row are left out. Half
    precision is computed in float32.
    """
    features, environment = whole_batch(features, environment)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    rows = torch.bincount(environment[environment >= 0])
    groups = [features[environment == e] for e in (rows > 1).nonzero()]
    if len(groups) < 2:
        return features[:0].sum()
    with torch.autocast(features.device.type, enabled=False):
        means = torch.stack([group.mean(0) for group in groups])
        covariances = torch.stack([group.T.cov() for group in groups])
        return 2 * (means.var(0).mean() + covariances.var(0).mean())


def irm_penalty(logits: Tensor, label: Tensor, environment: Tensor) -> Tensor:
    """How far a common scale of the logits is from optimal in every environment.

    Arjovsky et al. 2019, Invariant Risk Minimization, section 3.2 and appendix D: in each
    environment the derivative of the cross-entropy with respect to a scale of 1 on the logits, in
    its even and in its odd rows; the product of the two estimates the squared derivative without
    bias and can be negative. Mean over environments of two rows or more.

    logits (B, K) floating; label and environment (B,) int64, −1 = missing: such a row counts
    nowhere; half precision is computed in float32. Returns a scalar; 0 where no environment has
    two rows.
    """
    logits, label, environment = whole_batch(logits, label, environment)
    known = (label >= 0) & (environment >= 0)
    order = torch.argsort(environment[known], stable=True)
    logits, label = logits[known][order], label[known][order]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    _, group, rows = torch.unique_consecutive(
        environment[known][order], return_inverse=True, return_counts=True
    )
    # d/ds of −log softmax(s · logits)[label] at s = 1.
    slope = (logits.softmax(1) * logits).sum(1) - logits.gather(1, label[:, None]).squeeze(1)
    half = (torch.arange(len(group), device=group.device) - (rows.cumsum(0) - rows)[group]) % 2
    sums = slope.new_zeros(2 * len(rows)).index_add(0, 2 * group + half, slope).view(-1, 2)
    even, odd = sums[:, 0] / ((rows + 1) // 2), sums[:, 1] / (rows // 2).clamp(min=1)
    penalty: Tensor = (even * odd).sum() / (rows > 1).sum().clamp(min=1)
    return penalty


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
        total = nn.functional.cross_entropy(
            discriminator(point), environment, ignore_index=-1, reduction="sum"
        )
        (slope,) = torch.autograd.grad(total, point, create_graph=differentiable)
    return global_mean(slope.square().sum(), (environment >= 0).sum())
