"""Sums over groups of rows of a global batch, of which the losses of pairs are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deconfound.errors import UserError
from deconfound.losses.gather import gather_rows, gather_with_gradient, row_counts


def group_sums(z: Tensor, group: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For each row the sum of z over its group (N, D), and the size of its group (N,).

    The size is of the rows that are `counted` (N,), if not all are.
    """
    ids, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    sums = z.new_zeros(len(ids), z.shape[1]).index_add(0, index, z)
    if counted is not None:
        sizes = torch.zeros_like(sizes).index_add(0, index, counted.long())
    return sums.index_select(0, index), sizes[index]


def products(z: Tensor, sums: Tensor) -> Tensor:
    """Σ_j z_i·z_j over j ≠ i, (N,), from the sums of z_j that include j = i."""
    return (z * (sums - z)).sum(1)


def global_batch(
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


def joint(label: Tensor, environment: Tensor) -> Tensor:
    """A number of each pair of label and environment, (N,); -1 where either is missing."""
    pair = label * (environment.max() + 1).clamp(min=1) + environment
    return pair.where((label >= 0) & (environment >= 0), -1)
