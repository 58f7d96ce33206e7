"""Row-wise log-sum-exp of z zᵀ/τ and its gradient as Triton kernels, for float32 on a GPU.

Each program keeps a block of rows and meets all columns, with a running maximum per row, so no
logit ever leaves the chip. Products accumulate in float32 from three TF32 products, because 1/τ
would amplify the error of a single one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
COLUMNS = 64
CHUNK = 32
PRECISION = "ieee" if torch.version.hip else "tf32x3"


def log_sum_exp(z: Tensor, rows: slice, temperature: float, include_self: bool) -> Tensor:
    """log Σ_a exp(z_i·z_a/τ) of the given rows i of z (N, D) float32; -inf where the sum is empty.

    Returns (stop - start,) float32.
    """
    z = z.contiguous()
    lse = z.new_empty(rows.stop - rows.start)
    if len(lse):
        with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
            _log_sum_exp[(triton.cdiv(len(lse), ROWS),)](
                z,
                lse,
                rows.start,
                rows.stop,
                *z.shape,
                1 / temperature,
                INCLUDE_SELF=include_self,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                CHUNK=CHUNK,
                PRECISION=PRECISION,
            )
    return lse


def log_sum_exp_gradient(
    z: Tensor, lse: Tensor, gradient: Tensor, rows: slice, temperature: float, include_self: bool
) -> Tensor:
    """Gradient of Σ_i g_i lse_i in the given rows of z.

    z: (N, D) float32; lse and gradient: (N,) float32. Returns (stop - start, D) float32.
    """
    z, lse, gradient = z.contiguous(), lse.contiguous(), gradient.contiguous()
    dz = z.new_empty(rows.stop - rows.start, z.shape[1])
    width = min(max(triton.next_power_of_2(z.shape[1]), 16), 128)
    if dz.numel():
        with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
            _log_sum_exp_gradient[(triton.cdiv(len(dz), ROWS), triton.cdiv(z.shape[1], width))](
                z,
                lse,
                gradient,
                dz,
                rows.start,
                rows.stop,
                *z.shape,
                1 / temperature,
                INCLUDE_SELF=include_self,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                CHUNK=CHUNK,
                WIDTH=width,
                PRECISION=PRECISION,
            )
    return dz


@triton.jit  # type: ignore[untyped-decorator]
def _logits(
    z: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    stop: tl.tensor,
    count: tl.tensor,
    dimensions: tl.tensor,
    inverse_temperature: tl.tensor,
    INCLUDE_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, dimensions, CHUNK):
        k = first + tl.arange(0, CHUNK)
        left = tl.load(
            z + i[:, None] * dimensions + k[None, :],
            mask=(i[:, None] < stop) & (k[None, :] < dimensions),
            other=0.0,
        )
        right = tl.load(
            z + j[None, :] * dimensions + k[:, None],
            mask=(j[None, :] < count) & (k[:, None] < dimensions),
            other=0.0,
        )
        logits = tl.dot(left, right, logits, input_precision=PRECISION)
    absent = (i[:, None] >= stop) | (j[None, :] >= count)
    if not INCLUDE_SELF:
        absent = absent | (i[:, None] == j[None, :])
    return tl.where(absent, float("-inf"), logits * inverse_temperature)


@triton.jit  # type: ignore[untyped-decorator]
def _log_sum_exp(
    z: tl.tensor,
    lse: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    count: tl.tensor,
    dimensions: tl.tensor,
    inverse_temperature: tl.tensor,
    INCLUDE_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i = start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, count, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        logits = _logits(
            z, i, j, stop, count, dimensions, inverse_temperature,
            INCLUDE_SELF, ROWS, COLUMNS, CHUNK, PRECISION,
        )  # fmt: skip
        raised = tl.maximum(peak, tl.max(logits, 1))
        shift = tl.where(raised == float("-inf"), 0.0, raised)
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
        peak = raised
    tl.store(lse + i - start, peak + tl.log(total), mask=i < stop)


@triton.jit  # type: ignore[untyped-decorator]
def _log_sum_exp_gradient(
    z: tl.tensor,
    lse: tl.tensor,
    gradient: tl.tensor,
    dz: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    count: tl.tensor,
    dimensions: tl.tensor,
    inverse_temperature: tl.tensor,
    INCLUDE_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i = start + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    lse_i = tl.load(lse + i, mask=i < stop, other=0.0)
    gradient_i = tl.load(gradient + i, mask=i < stop, other=0.0)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, count, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        logits = _logits(
            z, i, j, stop, count, dimensions, inverse_temperature,
            INCLUDE_SELF, ROWS, COLUMNS, CHUNK, PRECISION,
        )  # fmt: skip
        lse_j = tl.load(lse + j, mask=j < count, other=0.0)
        gradient_j = tl.load(gradient + j, mask=j < count, other=0.0)
        weight = gradient_i[:, None] * tl.exp(logits - lse_i[:, None])
        weight += gradient_j[None, :] * tl.exp(logits - lse_j[None, :])
        z_j = tl.load(
            z + j[:, None] * dimensions + d[None, :],
            mask=(j[:, None] < count) & (d[None, :] < dimensions),
            other=0.0,
        )
        total = tl.dot(weight, z_j, total, input_precision=PRECISION)
    tl.store(
        dz + (i - start)[:, None] * dimensions + d[None, :],
        total * inverse_temperature,
        mask=(i[:, None] < stop) & (d[None, :] < dimensions),
    )
