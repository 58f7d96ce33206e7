"""Supervised contrastive loss and invariance loss of Makino et al. (SCBD), exact in O(N·D) memory.

With s_ij = z_i·z_j/τ and lse_i = log Σ_a exp(s_ia), the log-probability of matching i with j is
q_ij = s_ij - lse_i. Both losses need only sums of q over groups of j, and Σ_{j in c} s_ij =
z_i·Σ_{j in c} z_j/τ: one log-sum-exp per row and one sum of z per group are enough. The two forms
that are not the paper's, invariance given the label and heavier positives of other environments,
are made of the same sums.

When `torch.distributed` is initialised the batch is that of all ranks: every rank returns the loss
of the global batch, and its z receives the gradient of that loss (see `gather_with_gradient`).
All ranks must call; they may hold unequal numbers of rows. Half precision and autocast are computed
in float32; gradients have the dtype of z. A second derivative raises RuntimeError.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from deconfound.errors import UserError
from deconfound.losses.groups import global_batch, group_sums, joint, products
from deconfound.losses.log_partition import log_partition
from deconfound.losses.within_label import gap_given_label

Reduction = Literal["balanced", "listing", "equation"]
Given = Literal["none", "label"]


def supervised_contrastive(
    z: Tensor,
    label: Tensor,
    temperature: float = 0.1,
    include_self: bool = True,
    *,
    environment: Tensor | None = None,
    cross_environment_weight: float = 1.0,
) -> Tensor:
    """Pull together the rows that share a label: Makino et al., SCBD, section 2 (after Khosla).

    -(1/N) Σ_i mean_{p in P(i)} q_ip, where P(i) are the other rows with the label of i. A deviation
    on request: the mean is weighted, by `cross_environment_weight` where i and p are known to be of
    different environments and by 1 elsewhere.

    Args:
        z: (B, D) floating, rows of unit norm.
        label: (B,) integer; negative is missing: such a row is nobody's positive, its own term is
            0, and it stays in the denominators as a negative.
        temperature: τ > 0.
        include_self: whether the denominator of q_i keeps a = i, as in the paper's code (appendix
            B), or drops it, as in its equation.
        environment: (B,) integer, negative where missing; needed where the weight is not 1.
        cross_environment_weight: at least 1, which is the paper's.

    Returns a scalar, at least 0; log N at collapse (log(N-1) without self). An anchor without
    positives adds 0 and counts in the mean. Deviation: the mean over anchors, as in the paper's
    code; its equation has the sum.

    Raises UserError for shapes, dtypes, a temperature or a weight other than these.
    """
    _check_weight(cross_environment_weight, environment)
    groups = [label] if environment is None else [label, environment]
    z, (label, *others), counts = global_batch(z, groups, temperature)
    with torch.autocast(z.device.type, enabled=False):
        lse = log_partition(z, temperature, include_self, counts)
        if cross_environment_weight == 1:
            return _supervised_contrastive(z, label, lse, temperature)
        return _weighted_contrastive(
            z, label, others[0], lse, temperature, cross_environment_weight
        )


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
    z, (environment,), counts = global_batch(z, [environment], temperature)
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
    *,
    given: Given = "none",
    cross_environment_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Both losses of the content block, `supervised_contrastive` and `invariance`, in one pass.

    Arguments, values and errors are those of the two functions (Makino et al., SCBD, equation 1);
    the log-sum-exp of the rows and its gradient are computed once. The second loss is
    `invariance_given_label` if `given` is "label", which the reduction "balanced" alone has.
    """
    _check_reduction(reduction)
    check_given(given, reduction)
    _check_weight(cross_environment_weight, environment)
    z, (label, environment), counts = global_batch(z, [label, environment], temperature)
    with torch.autocast(z.device.type, enabled=False):
        lse = log_partition(z, temperature, include_self, counts)
        if cross_environment_weight == 1:
            pull = _supervised_contrastive(z, label, lse, temperature)
        else:
            pull = _weighted_contrastive(
                z, label, environment, lse, temperature, cross_environment_weight
            )
        if given == "label":
            return pull, gap_given_label(z, label, environment, temperature)
        own = None if reduction == "balanced" else lse
        return pull, _invariance(z, environment, own, temperature, reduction)


def check_given(given: str, reduction: str) -> None:
    """Raise UserError for a condition that is none, or that a form of the invariance lacks."""
    if given not in get_args(Given):
        raise UserError(f"invariance given {given!r}; expected one of {', '.join(get_args(Given))}")
    if given == "label" and reduction != "balanced":
        raise UserError(
            f"invariance given the label has no form {reduction!r}, whose sums grow with the "
            'groups; choose "balanced"'
        )


def _supervised_contrastive(z: Tensor, label: Tensor, lse: Tensor, temperature: float) -> Tensor:
    sums, size = group_sums(z, label)
    positives = torch.where(label >= 0, size - 1, 0)
    mean = products(z, sums) / temperature / positives.clamp(min=1)
    return torch.where(positives > 0, lse - mean, 0.0).mean()


def _weighted_contrastive(
    z: Tensor, label: Tensor, environment: Tensor, lse: Tensor, temperature: float, weight: float
) -> Tensor:
    """As `_supervised_contrastive`, with positives of another environment `weight` times."""
    has_label, known = label >= 0, environment >= 0
    sums, size = group_sums(z, label)
    both = joint(label, environment)
    of_both, number_of_both = group_sums(z, both)
    of_known, number_of_known = group_sums(z * known[:, None], label, known)
    cross = torch.where(known[:, None], of_known - of_both, 0.0)
    crossing = torch.where(known, number_of_known - number_of_both, 0)
    positives = torch.where(has_label, size - 1, 0)
    total = products(z, sums) + (weight - 1) * (z * cross).sum(1)
    mean = total / temperature / (positives + (weight - 1) * crossing).clamp(min=1)
    return torch.where(positives > 0, lse - mean, 0.0).mean()


def _invariance(
    z: Tensor, environment: Tensor, lse: Tensor | None, temperature: float, reduction: Reduction
) -> Tensor:
    known = environment >= 0
    sums, size = group_sums(z, environment)
    positives, negatives = size - 1, known.sum() - size
    positive_sum = products(z, sums) / temperature
    others = products(z, (z * known[:, None]).sum(0)) / temperature
    negative_sum = others - positive_sum
    if lse is None:
        used = known & (positives > 0) & (negatives > 0)
        gap = positive_sum / positives.clamp(min=1) - negative_sum / negatives.clamp(min=1)
        return torch.where(used, gap, 0.0).abs().mean()
    gap = positive_sum - negative_sum - (positives - negatives) * lse
    total = torch.where(known, gap, 0.0).abs().sum()
    return total if reduction == "equation" else total / len(z) ** 2


def _check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise UserError(
            f"reduction: {reduction!r}, expected one of {', '.join(get_args(Reduction))}; "
            'choose "balanced" unless a published value must be matched'
        )


def _check_weight(weight: float, environment: Tensor | None) -> None:
    if not 1 <= weight < math.inf:
        raise UserError(
            f"cross_environment_weight: {weight}, expected a finite number of at least 1; 1 is the "
            "paper's"
        )
    if weight != 1 and environment is None:
        raise UserError(
            f"cross_environment_weight: {weight} without environments; pass environment=…"
        )
