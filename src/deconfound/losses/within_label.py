"""Invariance of the content given the label: environments are compared within each label alone."""

import torch
from torch import Tensor

from deconfound.losses.groups import global_batch, group_sums, joint, products


def invariance_given_label(
    z: Tensor, label: Tensor, environment: Tensor, temperature: float = 0.1
) -> Tensor:
    """Make pairs within and across environments equally probable among the rows of each label.

    A deviation from Makino et al., SCBD, section 2. With P(i) the other rows of the label and the
    environment of i, N(i) the rows of its label in other environments and n_i = |N(i)|:

        |Σ_i n_i (mean_P q - mean_N q)| / Σ_i n_i

    The log-sum-exp cancels. With these weights the sum is Σ_y Σ_{e<f} n_ye n_yf |μ_ye - μ_yf|²/τ in
    expectation, where n_ye rows of label y and environment e have the expected content μ_ye: every
    label adds a squared distance of its environments, so none makes up for another, and no bias of
    small groups is in it. Chance differences cancel in the sum, whose absolute value is taken once;
    a mean of |mean_P q - mean_N q| would press them down with the spread within the label.

    Args:
        z: (B, D) floating, rows of unit norm.
        label: (B,) integer; negative is missing.
        environment: (B,) integer; negative is missing.
        temperature: τ > 0.

    A row without label or environment is left out, and so is one that is alone of its label in its
    environment, from which no spread can be told. Returns a scalar, at least 0; 0 where no label
    has two environments of two rows.

    Raises UserError for shapes, dtypes or a temperature other than these.
    """
    z, (label, environment), _ = global_batch(z, [label, environment], temperature)
    with torch.autocast(z.device.type, enabled=False):
        return gap_given_label(z, label, environment, temperature)


def gap_given_label(z: Tensor, label: Tensor, environment: Tensor, temperature: float) -> Tensor:
    """`invariance_given_label` of a whole global batch, (N, D) and (N,) each, that is checked."""
    both = joint(label, environment)
    _, number = group_sums(z, both)
    used = (both >= 0) & (number > 1)
    sums, size = group_sums(z * used[:, None], label, used)
    own, own_size = group_sums(z * used[:, None], both, used)
    negatives = torch.where(used, size - own_size, 0)
    within = products(z, own) * negatives / (own_size - 1).clamp(min=1)
    across = (z * (sums - own)).sum(1)
    gap = torch.where(negatives > 0, within - across, 0.0).sum() / temperature
    return gap.abs() / negatives.sum().clamp(min=1)
