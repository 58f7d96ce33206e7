"""Heads of many domains; a batch evaluates only those of its own domains."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


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
