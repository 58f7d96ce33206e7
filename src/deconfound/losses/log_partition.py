"""log Σ_a exp(z_i·z_a/τ) of every row i, and its gradient, without ever holding N x N logits.

The logits are symmetric, so a single process visits the upper triangle of blocks and takes each
exponential once, shifted by one bound of all logits. Where that shift could underflow (small τ,
rows far from unit norm), and where a rank computes only its own rows of a global batch, row blocks
meet all columns and each row keeps its own running maximum.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deconfound.losses.gather import gather_rows, own_rows

BLOCK = 512
HAS_TRITON = importlib.util.find_spec("triton") is not None


def log_partition(
    z: Tensor, temperature: float, include_self: bool, counts: Sequence[int] | None = None
) -> Tensor:
    """Row-wise log-sum-exp of z zᵀ/τ.

    z: (N, D) float32 or float64, the global batch, equal on every rank. counts: rows per rank in
    rank order; each rank computes its own rows. include_self: keep the term a = i of the sum.
    Returns (N,), equal on every rank, 0 where the sum is empty. The gradient is exact in this
    rank's rows of z and 0 in the others, provided that every rank computes the same loss. Raises
    RuntimeError for a second derivative.
    """
    counts = [len(z)] if counts is None else counts
    lse: Tensor = _LogPartition.apply(z, temperature, include_self, counts)  # type: ignore[no-untyped-call]
    return lse


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, temperature: float, include_self: bool, counts: Sequence[int]
    ) -> Tensor:
        rows = own_rows(counts)
        bound = None
        if _has_kernel(z):
            from deconfound.losses import contrastive_triton

            lse = contrastive_triton.log_sum_exp(z, rows, temperature, include_self)
        elif (bound := _shared_bound(z, temperature, counts)) is not None:
            lse = _triangle_log_sum_exp(z, temperature, include_self, bound)
        else:
            lse = _rows_log_sum_exp(z, rows, temperature, include_self)
        lse = gather_rows(lse.masked_fill_(lse.isneginf(), 0.0), counts)
        ctx.save_for_backward(z, lse)
        ctx.settings = rows, temperature, include_self, bound
        return lse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative of the log-sum-exp: drop create_graph=True")
        z, lse = ctx.saved_tensors
        rows, temperature, include_self, bound = ctx.settings
        with torch.autocast(z.device.type, enabled=False):
            if bound is not None:
                weight = gradient * torch.exp(bound - lse)
                dz = _triangle_gradient(z, weight, temperature, include_self, bound)
            else:
                if _has_kernel(z):
                    from deconfound.losses.contrastive_triton import log_sum_exp_gradient
                else:
                    log_sum_exp_gradient = _rows_gradient
                dz = torch.zeros_like(z)
                dz[rows] = log_sum_exp_gradient(z, lse, gradient, rows, temperature, include_self)
        return dz, None, None, None


def _has_kernel(z: Tensor) -> bool:
    return z.is_cuda and z.dtype == torch.float32 and HAS_TRITON


def _shared_bound(z: Tensor, temperature: float, counts: Sequence[int]) -> float | None:
    """The largest possible |logit|, or None where shifting all logits by it could underflow."""
    if len(counts) > 1:
        return None
    bound = z.square().sum(1).max().item() / temperature
    return bound if 2 * bound < -0.9 * math.log(torch.finfo(z.dtype).tiny) else None


def _triangle(
    z: Tensor, temperature: float, include_self: bool, bound: float
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks exp(z_i·z_j/τ - bound) on and above the diagonal, in one buffer that is reused."""
    scaled = z / temperature
    buffer = z.new_empty(min(BLOCK, len(z)) ** 2)
    for i in _blocks(0, len(z)):
        for j in _blocks(i.start, len(z)):
            height, width = i.stop - i.start, j.stop - j.start
            block = buffer[: height * width].view(height, width)
            torch.mm(scaled[i], z[j].T, out=block).sub_(bound).exp_()
            if i == j and not include_self:
                block.fill_diagonal_(0.0)
            yield i, j, block


def _triangle_log_sum_exp(
    z: Tensor, temperature: float, include_self: bool, bound: float
) -> Tensor:
    total = z.new_zeros(len(z))
    for i, j, block in _triangle(z, temperature, include_self, bound):
        total[i] += block.sum(1)
        if i != j:
            total[j] += block.sum(0)
    return total.log_().add_(bound)


def _triangle_gradient(
    z: Tensor, weight: Tensor, temperature: float, include_self: bool, bound: float
) -> Tensor:
    """(1/τ) W z with W_ij = exp(z_i·z_j/τ - bound) (w_i + w_j)."""
    dz = torch.zeros_like(z)
    buffer = z.new_empty(min(BLOCK, len(z)) ** 2)
    for i, j, block in _triangle(z, temperature, include_self, bound):
        pair = buffer[: block.numel()].view_as(block)
        block.mul_(torch.add(weight[i, None], weight[None, j], out=pair))
        dz[i].addmm_(block, z[j])
        if i != j:
            dz[j].addmm_(block.T, z[i])
    return dz.div_(temperature)


def _rows_log_sum_exp(z: Tensor, rows: slice, temperature: float, include_self: bool) -> Tensor:
    lse = z.new_full((rows.stop - rows.start,), -math.inf)
    for i in _blocks(rows.start, rows.stop):
        own = lse[i.start - rows.start : i.stop - rows.start]
        for j in _blocks(0, len(z)):
            logits = _logits(z, i, j, temperature, include_self)
            torch.logaddexp(own, logits.logsumexp(1), out=own)
    return lse


def _rows_gradient(
    z: Tensor, lse: Tensor, gradient: Tensor, rows: slice, temperature: float, include_self: bool
) -> Tensor:
    """(1/τ) W z with W_ij = g_i exp(s_ij - lse_i) + g_j exp(s_ij - lse_j), for the given rows."""
    dz = z.new_zeros(rows.stop - rows.start, z.shape[1])
    for i in _blocks(rows.start, rows.stop):
        own = dz[i.start - rows.start : i.stop - rows.start]
        for j in _blocks(0, len(z)):
            logits = _logits(z, i, j, temperature, include_self)
            transposed = (logits - lse[None, j]).exp_().mul_(gradient[None, j])
            block = logits.sub_(lse[i, None]).exp_().mul_(gradient[i, None]).add_(transposed)
            own.addmm_(block, z[j])
    return dz.div_(temperature)


def _logits(z: Tensor, i: slice, j: slice, temperature: float, include_self: bool) -> Tensor:
    logits = (z[i] / temperature) @ z[j].T
    if not include_self:
        logits.diagonal(i.start - j.start).fill_(-math.inf)
    return logits


def _blocks(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, BLOCK):
        yield slice(first, min(first + BLOCK, stop))
