"""Batch normalisation over the rows of every process, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(network: nn.Module) -> None:
    """Let every batch norm of `network` take its statistics over the rows of all processes.

    In place; parameters, buffers and their names stay. PyTorch's SyncBatchNorm needs a GPU.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synchronised = _SynchronisedBatchNorm(child)
            setattr(network, name, synchronised)
        else:
            synchronise_batch_norm(child)


class _SynchronisedBatchNorm(_BatchNorm):
    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        others = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        rows = values.new_tensor(float(values.numel() // values.shape[1]))
        dist.all_reduce(rows)
        mean = _sum_over_ranks(values.sum(others)) / rows
        centred = values - mean.view(shape)
        variance = _sum_over_ranks(centred.square().sum(others)) / rows
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        self._track(mean.detach(), variance.detach() * rows / (rows - 1).clamp(min=1))
        return (out * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        del input


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return total
