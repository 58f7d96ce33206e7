"""The networks of StarGAN v2, for any number of channels and images of many sizes.

Choi et al., StarGAN v2: Diverse Image Synthesis for Multiple Domains, CVPR 2020. A domain is an
environment. Weights are He's, biases zero. For powers of two from 32 px on, the numbers of blocks
are the paper's.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.nets.layers import DomainHeads

SLOPE = 0.2
SMALLEST = 16
SHARED_LAYERS, OWN_LAYERS = 4, 4


def generator_halvings(image_size: int) -> int:
    """How often the generator halves an image: floor(log2(size)) − 4, at least once.

    The bottleneck is then 8 to 31 pixels wide. Raises UserError if the image is smaller than 16
    pixels or its size is not divisible that often: below 64 pixels it must be even, below 128 a
    multiple of 4, and so on.
    """
    if image_size < SMALLEST:
        raise UserError(
            f"stargan2: images of {image_size} px; expected {SMALLEST} or more, "
            "ingest with a larger --size"
        )
    halvings = max(1, int(math.log2(image_size)) - 4)
    factor = 2**halvings
    if image_size % factor:
        below = image_size - image_size % factor
        raise UserError(
            f"stargan2: images of {image_size} px; expected a multiple of {factor} px at this "
            f"size, ingest with --size {below} or {below + factor}"
        )
    return halvings


class Generator(nn.Module):
    """Redraws an image in a style.

    image (B, C, H, H) floating, style (B, style_size) -> (B, C, H, H), unbounded. Blocks that halve
    the image, 2 + 2 blocks at the bottleneck, and mirrored blocks whose instance norms take scale
    and shift from the style. `width` channels after the first layer, twice as many after each
    halving, at most `max_width`. Deviation: no bias in all layers but the last, as an instance norm
    would undo it. Raises UserError for a size that `generator_halvings` refuses.
    """

    def __init__(
        self, channels: int, image_size: int, style_size: int, width: int, max_width: int
    ) -> None:
        super().__init__()
        widths = _widths(width, max_width, generator_halvings(image_size))
        inner = widths[-1]
        self.encode = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            *(_Block(*pair, normed=True, halves=True) for pair in pairwise(widths)),
            *(_Block(inner, inner, normed=True, halves=False) for _ in range(2)),
        )
        mirrored = pairwise(widths[::-1])
        self.decode = nn.ModuleList(
            [
                *(_StyledBlock(inner, inner, style_size, doubles=False) for _ in range(2)),
                *(_StyledBlock(*pair, style_size, doubles=True) for pair in mirrored),
            ]
        )
        self.to_image = nn.Sequential(
            _instance_norm(widths[0]), nn.LeakyReLU(SLOPE), nn.Conv2d(widths[0], channels, 1)
        )
        self.apply(_he)

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        maps = self.encode(image)
        for block in self.decode:
            maps = block(maps, style)
        drawn: Tensor = self.to_image(maps)
        return drawn


class MappingNetwork(nn.Module):
    """Random styles of a domain: latent (B, latent_size), domain (B,) int64 -> (B, style_size).

    Four layers of `width` units shared by all domains, then three and a linear one per domain.
    """

    def __init__(self, latent_size: int, style_size: int, domains: int, width: int) -> None:
        super().__init__()
        widths = [latent_size, *[width] * SHARED_LAYERS]
        layers = (layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU()))
        self.shared = nn.Sequential(*layers)
        self.heads = DomainHeads(domains, [*[width] * OWN_LAYERS, style_size])
        self.apply(_he)

    def forward(self, latent: Tensor, domain: Tensor) -> Tensor:
        style: Tensor = self.heads(self.shared(latent), domain)
        return style


class Trunk(nn.Sequential):
    """Image (B, C, H, H) to features (B, `features`), without normalisation.

    Blocks that halve the image to 4 to 7 pixels, then a convolution over all of them (4 × 4 in the
    paper, at powers of two). Raises UserError if the image is smaller than 16 pixels.
    """

    def __init__(self, channels: int, image_size: int, width: int, max_width: int) -> None:
        halvings = int(math.log2(max(image_size, 1))) - 2
        if image_size < SMALLEST:
            generator_halvings(image_size)
        widths = _widths(width, max_width, halvings)
        side = image_size // 2**halvings
        super().__init__(
            nn.Conv2d(channels, widths[0], 3, padding=1),
            *(_Block(*pair, normed=False, halves=True) for pair in pairwise(widths)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(widths[-1], widths[-1], side),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
        )
        self.features = widths[-1]
        self.apply(_he)


class StyleEncoder(nn.Module):
    """The style of an image: (B, C, H, H), domain (B,) int64 -> (B, style_size).

    `trunk` is shared by all domains; each domain has a linear layer after it.
    """

    def __init__(
        self, channels: int, image_size: int, style_size: int, domains: int,
        width: int, max_width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trunk = Trunk(channels, image_size, width, max_width)
        self.heads = DomainHeads(domains, [self.trunk.features, style_size])

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        style: Tensor = self.heads(self.trunk(image), domain)
        return style


class Discriminator(StyleEncoder):
    """Whether an image is a real one of its domain: (B, C, H, H), domain (B,) int64 -> logits (B,).

    It has the layers of a style encoder of size 1.
    """

    def __init__(
        self, channels: int, image_size: int, domains: int, width: int, max_width: int
    ) -> None:
        super().__init__(channels, image_size, 1, domains, width, max_width)

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        return super().forward(image, domain).squeeze(1)


class _Block(nn.Module):
    """A pre-activation residual block that keeps the variance: (branch + shortcut) / √2."""

    def __init__(self, inputs: int, outputs: int, *, normed: bool, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.first_norm = _instance_norm(inputs) if normed else nn.Identity()
        self.second_norm = _instance_norm(inputs) if normed else nn.Identity()
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1, bias=not normed)
        self.second = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normed)
        self.shortcut = _shortcut(inputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        branch = self._smaller(self.first(_leaky(self.first_norm(maps))))
        branch = self.second(_leaky(self.second_norm(branch)))
        joined: Tensor = (branch + self.shortcut(self._smaller(maps))) / math.sqrt(2)
        return joined

    def _smaller(self, maps: Tensor) -> Tensor:
        return functional.avg_pool2d(maps, 2) if self.halves else maps


class _StyledBlock(nn.Module):
    """The residual block whose norms take scale and shift from the style."""

    def __init__(self, inputs: int, outputs: int, style_size: int, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.first_norm = _AdaptiveNorm(inputs, style_size)
        self.second_norm = _AdaptiveNorm(outputs, style_size)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = _shortcut(inputs, outputs)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        branch = self.first(self._larger(_leaky(self.first_norm(maps, style))))
        branch = self.second(_leaky(self.second_norm(branch, style)))
        joined: Tensor = (branch + self._larger(self.shortcut(maps))) / math.sqrt(2)
        return joined

    def _larger(self, maps: Tensor) -> Tensor:
        return functional.interpolate(maps, scale_factor=2.0) if self.doubles else maps


class _AdaptiveNorm(nn.Module):
    """Instance norm, then (1 + scale) · maps + shift, both linear in the style."""

    def __init__(self, channels: int, style_size: int) -> None:
        super().__init__()
        self.norm = _instance_norm(channels, affine=False)
        self.scale_and_shift = nn.Linear(style_size, 2 * channels)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift(style)[:, :, None, None].chunk(2, dim=1)
        normed: Tensor = torch.addcmul(shift, 1 + scale, self.norm(maps))
        return normed


def _widths(width: int, max_width: int, halvings: int) -> list[int]:
    return [min(width * 2**number, max_width) for number in range(halvings + 1)]


def _instance_norm(channels: int, affine: bool = True) -> nn.Module:
    """A group norm of one channel per group, which also accepts an empty batch."""
    return nn.GroupNorm(channels, channels, affine=affine)


def _shortcut(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)


def _leaky(maps: Tensor) -> Tensor:
    return functional.leaky_relu(maps, SLOPE)


def _he(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
