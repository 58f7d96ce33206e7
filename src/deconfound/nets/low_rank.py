"""Low-rank adapters: a network learns small changes of its linear layers, whose weights stay."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deconfound.errors import UserError

ORIGINAL, ADAPTER = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """weight (out, in) -> weight + up (out, rank) · down (rank, in), the same at first, as up is 0.

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, eq. 3 with alpha = rank.
    """

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).to(weight.dtype)


def add_adapters(network: nn.Module, rank: int, name: str) -> None:
    """Freeze `network` and give each of its linear layers an adapter of `rank`, in place.

    Raises UserError if it has no linear layer, as most convolutional networks.
    """
    network.requires_grad_(False)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(
            f"--tune lora adapts linear layers, and {name} has none; choose --tune full or frozen, "
            "or a transformer"
        )
    for layer in layers:
        adapter = LowRank(layer.out_features, layer.in_features, rank)
        parametrize.register_parametrization(layer, "weight", adapter)


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters into the weights that they change, in place: the same function, no adapters.

    A network without adapters stays as it is.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of `network` by the names that they have without adapters, which are left out."""
    return {
        name.replace(ORIGINAL, ".weight"): value
        for name, value in network.state_dict().items()
        if ADAPTER not in name
    }
