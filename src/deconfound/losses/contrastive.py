"""Supervised contrastive loss and invariance loss of Makino et al. (SCBD), exact in O(N·D) memory.

With s_ij = z_i·z_j/τ and lse_i = log Σ_a exp(s_ia), the log-probability of matching i with j is
q_ij = s_ij - lse_i. Both losses need only sums of q over groups of j, and Σ_{j in c} s_ij =
z_i·Σ_{j in c} z_j/τ: one log-sum-exp per row and one sum of z per group are enough.

When `torch.distributed` is initialised the batch is that of all ranks: every rank returns the loss
of the global batch, and its z receives the gradient of that loss (see `gather_with_gradient`).
All ranks must call; they may hold unequal numbers of rows. Half precision and autocast are computed
in float32; gradients have the dtype of z. A second derivative raises RuntimeError.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from deconfound.errors import UserError
from deconfound.losses.gather import gather_rows, gather_with_gradient, row_counts
from deconfound.losses.log_partition import log_partition

Reduction = Literal["balanced", "listing", "equation"]


def supervised_contrastive(
    z: Tensor, label: Tensor, temperature: float = 0.1, include_self: bool = True
) -> Tensor:
    """Pull together the rows that share a label: Makino et al., SCBD, section 2 (after Khosla).

    -(1/N) Σ_i mean_{p in P(i)} q_ip, where P(i) are the other rows with the label of i.

    Args:
        z: (B, D) floating, rows of unit norm.
        label: (B,) integer; negative is missing: such a row is nobody's positive, its own term is
            0, and it stays in the denominators as a negative.
        temperature: τ > 0.
        include_self: whether the denominator of q_i keeps a = i, as in the paper's code (appendix
            B), or drops it, as in its equation.

    Returns a scalar, at least 0; log N at collapse (log(N-1) without self). An anchor without
    positives adds 0 and counts in the mean. Deviation: the mean over anchors, as in the paper's
    code; its equation has the sum.

    Raises UserError for shapes, dtypes or a temperature other than these.
    """
    z, (label,), counts = _global_batch(z, [label], temperature)
    with torch.autocast(z.device.type, enabled=False):
        lse = log_partition(z, temperature, include_self, counts)
        return _supervised_contrastive(z, label, lse, temperature)


def invariance(
    z: Tensor,
    environment: Tensor,
    temperature: float = 0.1,
    reduction: Reduction = "balanced",
    include_self: bool = True,
) -> Tensor:
    """Make pairs within and across environments equally probable: Makino et al., SCBD, section 2.

    With P(i) the other rows of the environment of i and N(i) the rows of other environments:

    - "listing", the paper's code (appendix B): (1/N) Σ_i (1/N) |Σ_P q - Σ_N q|;
    - "equation", the paper's text summed over anchors: Σ_i |Σ_P q - Σ_N q|;
    - "balanced", a deviation: (1/N) Σ_i |mean_P q - mean_N q|. The log-sum-exp cancels, so unlike
      the other two it does not reward collapse when environments are unequal or more than two;
      an anchor without P or without N adds 0.

    Args:
        z: (B, D) floating, rows of unit norm.
        environment: (B,) integer; negative is missing: such a row is in no P or N and its own term
            is 0; it counts in N and stays in the denominators.
        temperature: τ > 0.
        reduction: one of the three above.
        include_self: whether the denominator of q_i keeps a = i; without effect on "balanced".

    Returns a scalar, at least 0; a single environment gives 0 under "balanced".

    Raises UserError for shapes, dtypes, a temperature or a reduction other than these.
    """
    _check_reduction(reduction)
    z, (environment,), counts = _global_batch(z, [environment], temperature)
    with torch.autocast(z.device.type, enabled=False):
        lse = None
        if reduction != "balanced":
            lse = log_partition(z, temperature, include_self, counts)
        return _invariance(z, environment, lse, temperature, reduction)


def content_losses(
    z: Tensor,
    label: Tensor,
    environment: Tensor,
    temperature: float = 0.1,
    reduction: Reduction = "balanced",
    include_self: bool = True,
) -> tuple[Tensor, Tensor]:
    """Both losses of the content block, `supervised_contrastive` and `invariance`, in one pass.

    Arguments, values and errors are those of the two functions (Makino et al., SCBD, equation 1);
    the log-sum-exp of the rows and its gradient are computed once.
    """
    _check_reduction(reduction)
    z, (label, environment), counts = _global_batch(z, [label, environment], temperature)
    with torch.autocast(z.device.type, enabled=False):
        lse = log_partition(z, temperature, include_self, counts)
        return (
            _supervised_contrastive(z, label, lse, temperature),
            _invariance(
                z, environment, None if reduction == "balanced" else lse, temperature, reduction
            ),
        )


def _supervised_contrastive(z: Tensor, label: Tensor, lse: Tensor, temperature: float) -> Tensor:
    sums, size = _group_sums(z, label)
    positives = torch.where(label >= 0, size - 1, 0)
    mean = _products(z, sums) / temperature / positives.clamp(min=1)
    return torch.where(positives > 0, lse - mean, 0.0).mean()


def _invariance(
    z: Tensor, environment: Tensor, lse: Tensor | None, temperature: float, reduction: Reduction
) -> Tensor:
    known = environment >= 0
    sums, size = _group_sums(z, environment)
    positives, negatives = size - 1, known.sum() - size
    positive_sum = _products(z, sums) / temperature
    others = _products(z, (z * known[:, None]).sum(0)) / temperature
    negative_sum = others - positive_sum
    if lse is None:
        used = known & (positives > 0) & (negatives > 0)
        gap = positive_sum / positives.clamp(min=1) - negative_sum / negatives.clamp(min=1)
        return torch.where(used, gap, 0.0).abs().mean()
    gap = positive_sum - negative_sum - (positives - negatives) * lse
    total = torch.where(known, gap, 0.0).abs().sum()
    return total if reduction == "equation" else total / len(z) ** 2


def _group_sums(z: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the sum of z over its group (N, D), and the size of its group (N,)."""
    ids, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    sums = z.new_zeros(len(ids), z.shape[1]).index_add(0, index, z)
    return sums.index_select(0, index), sizes[index]


def _products(z: Tensor, sums: Tensor) -> Tensor:
    """Σ_j z_i·z_j over j ≠ i, (N,), from the sums of z_j that include j = i."""
    return (z * (sums - z)).sum(1)


def _global_batch(
    z: Tensor, groups: Sequence[Tensor], temperature: float
) -> tuple[Tensor, list[Tensor], list[int]]:
    """Check one rank's rows and join those of all ranks, z in at least float32."""
    if z.ndim != 2 or not z.is_floating_point():
        raise UserError(
            f"z: {z.dtype} of shape {tuple(z.shape)}, expected floating rows (B, D); "
            "pass one vector per image"
        )
    for group in groups:
        if group.shape != z.shape[:1] or group.is_floating_point() or group.is_complex():
            raise UserError(
                f"labels: {group.dtype} of shape {tuple(group.shape)}, expected integers of shape "
                f"({len(z)},); pass one integer per row of z, -1 where it is missing"
            )
    if not temperature > 0:
        raise UserError(f"temperature: {temperature}, expected more than 0; the papers use 0.1")
    counts = row_counts(len(z), z.device)
    if sum(counts) == 0:
        raise UserError("z: no rows, expected at least one; drop empty batches")
    joined = gather_rows(torch.stack([group.long() for group in groups], 1), counts)
    z = gather_with_gradient(z, counts)
    return z.to(torch.promote_types(z.dtype, torch.float32)), list(joined.unbind(1)), counts


def _check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise UserError(
            f"reduction: {reduction!r}, expected one of {', '.join(get_args(Reduction))}; "
            'choose "balanced" unless a published value must be matched'
        )
