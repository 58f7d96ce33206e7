"""The global batch: rows of every rank, one after the other.

Every function is the identity in a single process. With `torch.distributed` initialised and more
than one rank each is a collective: all ranks call it, in the same order. Ranks may hold unequal
numbers of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def row_counts(count: int, device: torch.device) -> list[int]:
    """The number of rows on each rank, in rank order; `count` is this rank's."""
    if not _several_ranks():
        return [count]
    own = torch.tensor([count], device=device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return [int(c) for c in torch.cat(counts).tolist()]


def own_rows(counts: Sequence[int]) -> slice:
    """The place of this rank's rows in the global batch."""
    rank = dist.get_rank() if len(counts) > 1 else 0
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def gather_rows(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows (b, ...) of every rank as one tensor (N, ...), without gradient.

    `counts` is the result of `row_counts`, which is called if it is not given.
    """
    tensor = tensor.detach()
    if not _several_ranks():
        return tensor
    counts = counts or row_counts(len(tensor), tensor.device)
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows (b, ...) of every rank as one tensor (N, ...), differentiable in this rank's rows.

    Backward communicates nothing: it keeps this rank's rows of the incoming gradient. That is the
    whole gradient when every rank computes the same loss from the gathered rows. A trainer that
    averages parameter gradients over ranks (DistributedDataParallel) must multiply such a loss by
    the world size.
    """
    if not _several_ranks():
        return tensor
    counts = counts or row_counts(len(tensor), tensor.device)
    gathered: Tensor = _Gather.apply(tensor, counts)  # type: ignore[no-untyped-call]
    return gathered


def whole_batch(values: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
    """The rows of every rank in the order they had before the training loop dealt them out.

    It deals row i of a batch to rank i mod R. values (b, ...) keeps the gradient of this rank's
    rows, as in `gather_with_gradient`; codes (b,) carry none. Returns all of them as (N, ...).
    """
    if not _several_ranks():
        return values, *codes
    counts = row_counts(len(values), values.device)
    place = [torch.arange(count) * len(counts) + rank for rank, count in enumerate(counts)]
    order = torch.cat(place).argsort().to(values.device)
    gathered = gather_with_gradient(values, counts)
    return gathered[order], *(gather_rows(code, counts)[order] for code in codes)


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """Mean over the rows of all ranks, from this rank's sum `total` over `count` rows.

    total: () floating. The value is the same on every rank; its gradient is of this rank's rows, so
    that gradients of parameters add up over ranks. The mean is 0 without any row.
    """
    rows = torch.as_tensor(count, device=total.device)
    if not _several_ranks():
        return total / rows.clamp(min=1)
    both = torch.stack([total.detach().double(), rows.double()])
    dist.all_reduce(both)
    mean, rows = both[0] / both[1].clamp(min=1), both[1].clamp(min=1)
    return mean.to(total.dtype) + (total - total.detach()) / rows.to(total.dtype)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.rows = own_rows(counts)
        return gather_rows(tensor, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rows], None
