"""Penalties on differences between environments: CORAL's on features, IRM's on logits.

Both use the rows of all ranks: every rank has the same value, and gradients of parameters add up
over ranks. Half precision is computed in float32.
"""

import torch
from torch import Tensor

from deconfound.losses.gather import whole_batch


def coral_penalty(features: Tensor, environment: Tensor) -> Tensor:
    """Distance between the means and covariances of environments.

    Sun & Saenko 2016 (Deep CORAL) as in DomainBed and WILDS: for each pair of environments
    mean((μ_i − μ_j)²) + mean((C_i − C_j)²), C with n − 1, averaged over pairs. That average is
    twice the variance over environments, so no pair is formed.

    features (B, D) floating; environment (B,) int64, −1 = missing. Returns a scalar, at least 0; 0
    where fewer than two environments have two rows. Environments of one row are left out.
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
    nowhere. Returns a scalar; 0 where no environment has two rows.
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
