"""Terms of the evidence lower bound, and how many dimensions of a posterior depend on the image.

Every mean over rows is over the rows of all processes. No function raises errors of its own.
"""

import math

import torch
from torch import Tensor

from deconfound.losses.gather import gather_rows, global_mean
from deconfound.nets.vae import Gaussian

ACTIVE = 0.01
"""Least variance of an active dimension's mean, as a share of the posterior's variance."""

LEAST_LOG_SIGMA = -6.0
"""Least log sd of a pixel: that of the code of Rybkin et al."""


def optimal_sigma_nll(mean: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Negative log-likelihood of each row under the likeliest common sd, in nats: (B,).

    Normal around `mean`, summed over the pixels or features of `target`, (B, ...) floating each;
    at least float32. σ² is the mean squared error over all pixels of the rows `counted` (B,) bool
    of all processes, where their likelihood has its maximum: it is not learned, and the derivative
    by it is 0. So the mean over counted rows is pixels/2 · (log 2πσ² + 1). log σ is at least −6.
    Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021, the optimal
    σ-VAE; theirs bends log σ softly before that.
    """
    squared = ((mean - target) ** 2).flatten(1)
    own = squared.to(torch.promote_types(squared.dtype, torch.float32)).sum(dim=1)
    pixels = squared.shape[1]
    least = math.exp(2 * LEAST_LOG_SIGMA)
    variance = (row_mean(own.detach(), counted) / pixels).clamp(min=least)
    return 0.5 * (own / variance + pixels * torch.log(2 * math.pi * variance))


def kl_divergence(q: Gaussian, p: Gaussian | None = None) -> Tensor:
    """KL(q || p) of each row, the sum over dimensions: (B,) in nats, at least 0.

    q and p hold (B, D) each; p is N(0, 1) where it is not given. Kingma & Welling, Auto-Encoding
    Variational Bayes, 2014, appendix B; Makino et al., SCBD, section 3.
    """
    if p is None:
        p = Gaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    log_ratio = q.log_variance - p.log_variance
    squared_shift = (q.mean - p.mean) ** 2 * (-p.log_variance).exp()
    return 0.5 * (log_ratio.exp() + squared_shift - 1 - log_ratio).sum(dim=1)


def distance_to_zero(q: Gaussian) -> Tensor:
    """Squared 2-Wasserstein distance of each row to a point mass at 0: |mean|² + Σ variance, (B,).

    q holds (B, D) each. Wang et al., Multi-Contrastive VAE, 2023: the penalty on the salient
    posterior of controls.
    """
    return (q.mean**2 + q.log_variance.exp()).sum(dim=1)


def row_mean(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean of values (B,) over the rows `counted` (B,) bool, all if not given; 0 without rows."""
    if counted is None:
        return global_mean(values.sum(), len(values))
    return global_mean((values * counted).sum(), counted.sum())


def active_units(q: Gaussian) -> Tensor:
    """Number of dimensions whose mean varies over the rows by more than 1 % of their variance.

    q holds (B, D) each; returns () in [0, D], without gradient: 0 where the posterior has
    collapsed. Burda et al., Importance Weighted Autoencoders, 2016, appendix C, with the variance
    of the posterior in place of 1, since a learned prior may have any scale.
    """
    mean, log_variance = gather_rows(q.mean), gather_rows(q.log_variance)
    if not len(mean):
        return mean.new_zeros(())
    own = log_variance.exp().mean(dim=0)
    return (mean.var(dim=0, correction=0) > ACTIVE * own).sum().to(mean.dtype)


def prior_spread(prior: Gaussian) -> Tensor:
    """How far the means of the classes of a prior lie apart, in sd of the prior.

    For each dimension the sd of the means divided by the root mean variance; the largest of these.
    The prior holds (K, D) each, one row per class. Returns () from 0 on, without gradient; 0 where
    the prior has collapsed, i.e. ignores the class: Makino et al., SCBD, section 3.
    """
    mean, log_variance = prior.mean.detach(), prior.log_variance.detach()
    share = mean.var(dim=0, correction=0) / log_variance.exp().mean(dim=0)
    return share.sqrt().max()
