"""A network as a function of its inputs alone."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.func import functional_call


def constant(network: nn.Module) -> Callable[..., Any]:
    """`network` as a function: no gradient reaches its weights, and its buffers do not change."""
    state = {name: value.detach() for name, value in network.named_parameters()}
    state |= {name: value.clone() for name, value in network.named_buffers()}
    return lambda *inputs: functional_call(network, state, inputs)
