"""A network with constant weights, and the moving average of its weights."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call

Network = TypeVar("Network", bound=nn.Module)


def averaged_copy(network: Network) -> Network:
    """A copy with buffers in place of parameters: saved with a method, trained by no phase.

    It has the weights of `network` until `update_average` moves them.
    """
    average = copy.deepcopy(network)
    for module in average.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach().clone())
    return average


def early_decay(decay: float, updates: int) -> float:
    """The decay after n `updates`: `decay`, but at most (1 + n) / (10 + n).

    So the average of a short training covers its end and not its beginning.
    """
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set every weight of `average` to decay · itself + (1 − decay) · the weight of `network`."""
    weights = network.state_dict()
    for name, value in average.state_dict().items():
        value.lerp_(weights[name], 1 - decay)


def constant(network: nn.Module) -> Callable[..., Any]:
    """`network` as a function: no gradient reaches its weights, and its buffers do not change."""
    state = {name: value.detach() for name, value in network.named_parameters()}
    state |= {name: value.clone() for name, value in network.named_buffers()}
    return lambda *inputs: functional_call(network, state, inputs)
