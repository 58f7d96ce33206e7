"""Layers: linear ones for many domains, and batch norms over the rows of every process."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class DomainHeads(nn.Module):
    """A perceptron for each domain, Linear(-ReLU-Linear)*, of the widths `widths`.

    features (B, widths[0]) floating, domain (B,) int64 in [0, domains) -> (B, widths[-1]). Each row
    goes through its own domain's perceptron only, so neither arithmetic nor activations grow with
    the number of domains; StarGAN v2 (Choi et al., 2020) computes all domains and then selects.
    Weights are He's, biases zero. Raises no errors of its own.
    """

    def __init__(self, domains: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DomainLinear(domains, *pair) for pair in pairwise(widths))

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        present, place, counts = torch.unique(domain, return_inverse=True, return_counts=True)
        if not len(present):  # one group of no rows
            present, counts = domain.new_zeros(1), domain.new_zeros(1)
        order = place.argsort(stable=True)
        groups = torch.split_with_sizes(features[order], counts.tolist())
        for number, layer in enumerate(self.layers):
            groups = layer([group.relu() for group in groups] if number else groups, present)
        return torch.cat(groups)[order.argsort()]


class _DomainLinear(nn.Module):
    """A linear layer for each domain: weight (domains, out, in), bias (domains, out)."""

    def __init__(self, domains: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(domains, outputs, inputs) * (2 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(domains, outputs))

    def forward(self, groups: Sequence[Tensor], present: Tensor) -> tuple[Tensor, ...]:
        """Map group i (b, in), whose domain is present[i]."""
        own = zip(groups, self.weight[present], self.bias[present], strict=True)
        return tuple(functional.linear(group, weight, bias) for group, weight, bias in own)


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
        mean = sum_over_ranks(values.sum(others)) / rows
        centred = values - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(others)) / rows
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


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over processes; so are the gradients. The tensor itself in one process.

    Where there are several every process calls it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return total
