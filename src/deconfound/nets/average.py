"""A moving average of a network's weights."""

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Exponential moving average of the parameters of a module without buffers.

    Karras et al., Progressive Growing of GANs, 2018. The averages are buffers, so no optimizer
    takes them for weights to train, and they are saved and resumed as every buffer is. The n-th
    update decays by min(decay, (1 + n) / (10 + n)): a short training is averaged over its end and
    not over its beginning.
    """

    count: Tensor
    """() int64: updates so far."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name, parameter in module.named_parameters():
            self.register_buffer(_key(name), parameter.detach().clone())

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Forget the past: the averages are the module's parameters."""
        self.count.zero_()
        for name, parameter in module.named_parameters():
            self.get_buffer(_key(name)).copy_(parameter)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's parameters."""
        self.count += 1
        count = int(self.count)
        share = 1 - min(self.decay, (1 + count) / (10 + count))
        for name, parameter in module.named_parameters():
            self.get_buffer(_key(name)).lerp_(parameter, share)

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """The averages by the names of the module's parameters, for `functional_call`."""
        return {name: self.get_buffer(_key(name)) for name, _ in module.named_parameters()}


def _key(name: str) -> str:
    return name.replace(".", "/")
