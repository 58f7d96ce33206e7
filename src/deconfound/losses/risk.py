"""The mean loss of every environment, from which methods weigh or compare environments."""

import torch
from torch import Tensor, nn

from deconfound.losses.gather import whole_batch


def environment_risks(
    logits: Tensor, label: Tensor, environment: Tensor, environments: int
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in each environment, over the rows of all ranks.

    logits (B, K) floating; label and environment (B,) int64, −1 = missing: such a row counts
    nowhere. Returns risks (environments,), 0 for one that is absent, and rows (environments,)
    int64. Every rank has the same values; gradients of parameters add up over ranks.
    """
    logits, label, environment = whole_batch(logits, label, environment)
    known = (label >= 0) & (environment >= 0)
    label, environment = label[known], environment[known]
    losses = nn.functional.cross_entropy(logits[known], label, reduction="none")
    sums = losses.new_zeros(environments).index_add(0, environment, losses)
    rows = torch.bincount(environment, minlength=environments)
    return sums / rows.clamp(min=1), rows
