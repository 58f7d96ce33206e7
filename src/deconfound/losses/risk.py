"""The cross-entropy of labels: its mean over all rows, and over those of each environment."""

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
