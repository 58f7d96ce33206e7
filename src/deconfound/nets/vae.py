"""Networks of VAEs, for images and for profiles: trunk, posterior, prior, decoder."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deconfound.nets.decoder import he_convolution
from deconfound.nets.encoder import MLP_WIDTHS, Encoder, Norm, build_encoder

VAE = "vae"
LEAST_LOG_VARIANCE = -20.0
MAP = 8
"""Side of the smallest map, between encoder and decoder."""


class Gaussian(NamedTuple):
    """A normal distribution for each row, with independent dimensions."""

    mean: Tensor
    """(B, D), at least float32."""
    log_variance: Tensor
    """(B, D), natural logarithm."""

    @classmethod
    def of(cls, parameters: Tensor) -> "Gaussian":
        """From a network's output (B, 2 D): D means, and D log-variances of at least −20."""
        wide = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        mean, log_variance = wide.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(min=LEAST_LOG_VARIANCE))

    def rows(self, chosen: Tensor) -> "Gaussian":
        """The distributions of the rows `chosen` (B,), bool or int64."""
        return Gaussian(self.mean[chosen], self.log_variance[chosen])

    def sample(self) -> Tensor:
        """One draw for each row, (B, D), through which gradients reach both parameters."""
        return self.mean + (0.5 * self.log_variance).exp() * standard_normal(self.mean)


def standard_normal(like: Tensor) -> Tensor:
    """Independent draws from N(0, 1) in the shape of `like`, by the global stream."""
    return torch.randn_like(like)


class GaussianTable(nn.Module):
    """A learned normal distribution for each of `classes`: code (B,) int64 -> Gaussian (B, D).

    Means begin as draws from N(0, 1), variances as 1; `learns_variance=False` keeps these at 1.
    """

    def __init__(self, classes: int, size: int, learns_variance: bool = True) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(classes, size))
        self.log_variance = nn.Parameter(torch.zeros(classes, size)) if learns_variance else None

    def forward(self, code: Tensor) -> Gaussian:
        return self.every().rows(code)

    def every(self) -> Gaussian:
        """The distributions of all classes, (classes, D)."""
        variance = self.log_variance
        return Gaussian(self.mean, torch.zeros_like(self.mean) if variance is None else variance)


def build_trunk(
    name: str, channels: int, side: int | None, width: int, norm: Norm = "batch"
) -> Encoder:
    """The network before the layer that gives a posterior's parameters.

    - `vae`: the five convolutions of Makino et al., SCBD, Table 3, for 64 pixels, with one stride
      fewer for 32; `width` 32 is the paper's. Without a norm.
    - any name of `build_encoder`.

    (B, channels, side, side), or (B, channels) where `side` is None, to (B, features). For profiles
    `vae` selects `mlp`. Raises UserError as `build_encoder` does.
    """
    if name != VAE or side is None:
        return build_encoder("small" if name == VAE else name, channels, side, norm)
    layers: list[nn.Module] = []
    inputs = channels
    last_stride = side // (4 * MAP)
    for outputs, stride in (
        (width, 2), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, last_stride),
    ):  # fmt: skip
        layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GELU()]
        inputs = outputs
    network = nn.Sequential(*layers, nn.Flatten())
    network.apply(_he)
    return Encoder(network, 2 * width * MAP**2)


def build_decoder(size: int, channels: int, side: int | None, width: int) -> nn.Module:
    """Latent variables (B, size) to the means of pixels (B, channels, side, side), unbounded.

    Makino et al., SCBD, Table 4, for 64 pixels, with one stride fewer for 32; `width` 32 is the
    paper's. Where `side` is None it gives the means of features (B, channels), by a perceptron with
    the hidden layers of `mlp` in reverse. Weights are He's, as in the code of Wang et al. 2023,
    whose final tanh is left out: pixels have no bounds here. Raises no errors of its own.
    """
    if side is None:
        hidden = pairwise((size, *reversed(MLP_WIDTHS)))
        layers = (layer for pair in hidden for layer in (nn.Linear(*pair), nn.GELU()))
        network = nn.Sequential(*layers, nn.Linear(MLP_WIDTHS[0], channels))
    else:
        network = nn.Sequential(
            nn.Linear(size, 2 * width * MAP**2),
            nn.Unflatten(1, (2 * width, MAP, MAP)),
            nn.GELU(),
            _larger(2 * width, 2 * width, side // (4 * MAP)),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            _larger(2 * width, width, 2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            _larger(width, channels, 2),
        )
    network.apply(_he)
    return network


def _larger(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.ConvTranspose2d(
        inputs, outputs, 3, stride=stride, padding=1, output_padding=stride - 1
    )


def _he(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    he_convolution(layer)
