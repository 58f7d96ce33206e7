"""Encoders that return their maps layer by layer, and the style code of these maps."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.nets.encoder import build_encoder

TappedName = Literal["small", "resnet18"]
SMALL_WIDTHS = (32, 64, 128)
RESNET_WIDTHS = (64, 64, 128, 256, 512)
EPSILON = 1e-5


class Features(NamedTuple):
    """Maps and features of images, by a tapped encoder."""

    taps: tuple[Tensor, ...]
    """Maps (B, widths[l], h, w), finest first: outputs of convolutions before their norm."""
    pooled: Tensor
    """(B, features), from the mean over the pixels of the last activated map."""


class TappedEncoder(nn.Module):
    """An encoder with instance norm that also returns its maps before each norm.

    `encoder(image)`: (B, C, H, W) floating -> `Features`. Pernice et al., Interventional Style
    Transfer, section 4.1: u^l. The taps lie before the norm, because normalised maps have one mean
    and sd for all images and do not show the gain of an image.
    Random initial weights come from PyTorch's global stream: seed it before building.
    """

    widths: tuple[int, ...]
    """Channels of each tap."""
    features: int
    """Width of `Features.pooled`."""


class SmallTapped(TappedEncoder):
    """Three strided convolutions, with taps at 1/2, 1/4 and 1/8, and a 1 x 1; ours, for a CPU.

    Means of rectified maps differ little between images. A layer norm brings the differences out;
    without it little is learned in a few hundred steps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = SMALL_WIDTHS
        self.features = SMALL_WIDTHS[-1]
        inputs = (channels, *SMALL_WIDTHS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, width, kernel_size=3, stride=2, padding=1, bias=False)
            for before, width in zip(inputs, SMALL_WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for width in SMALL_WIDTHS)
        self.last = nn.Conv2d(SMALL_WIDTHS[-1], self.features, kernel_size=1, bias=False)
        self.last_norm = nn.InstanceNorm2d(self.features, affine=True)
        self.pooled_norm = nn.LayerNorm(self.features)

    def forward(self, image: Tensor) -> Features:
        taps: list[Tensor] = []
        map = image
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            taps.append(convolution(map))
            map = functional.relu(norm(taps[-1]))
        map = functional.relu(self.last_norm(self.last(map)))
        return Features(tuple(taps), self.pooled_norm(map.mean(dim=(2, 3))))


class ResNetTapped(TappedEncoder):
    """ResNet-18, taps at the stem (1/2) and at each layer's last convolution (1/4 to 1/32).

    He et al., Deep Residual Learning, 2016; the encoder of Pernice et al., section 4.1.
    """

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.widths = RESNET_WIDTHS
        self.features = RESNET_WIDTHS[-1]
        self.network = build_encoder("resnet18", channels, image_size, "instance").network

    def forward(self, image: Tensor) -> Features:
        network = self.network
        stem = network.conv1(image)  # type: ignore[operator]
        taps: list[Tensor] = [stem]
        map = network.maxpool(functional.relu(network.bn1(stem)))  # type: ignore[operator]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            first, last = network.get_submodule(name).children()
            before = first(map)
            inner = functional.relu(last.bn1(last.conv1(before)))  # type: ignore[operator]
            taps.append(last.conv2(inner))  # type: ignore[operator]
            map = functional.relu(last.bn2(taps[-1]) + before)  # type: ignore[operator]
        return Features(tuple(taps), map.mean(dim=(2, 3)))


def build_tapped_encoder(name: TappedName, channels: int, image_size: int) -> TappedEncoder:
    """The tapped encoder called `name` for square images of `image_size` px.

    Raises UserError if its last map would have a single pixel, which instance norm cannot take.
    """
    halvings = len(SMALL_WIDTHS if name == "small" else RESNET_WIDTHS)
    least = 2**halvings + 1
    if image_size < least:
        larger = " or the encoder small" if name == "resnet18" else ""
        raise UserError(
            f"encoder {name} halves images {halvings} times, and {image_size} x {image_size} px "
            f"would leave a single pixel; expected {least} x {least} or more, use larger "
            f"images{larger}"
        )
    return SmallTapped(channels) if name == "small" else ResNetTapped(channels, image_size)


def channel_statistics(map: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd, sqrt(variance + 1e-5), of each channel over its pixels.

    map (B, C, H, W) floating, two tensors (B, C), at least float32.
    """
    values = map.to(torch.promote_types(map.dtype, torch.float32))
    mean = values.mean(dim=(2, 3))
    variance = values.var(dim=(2, 3), correction=0)
    return mean, (variance + EPSILON).sqrt()


def instance_normalised(map: Tensor) -> Tensor:
    """The map (B, C, H, W) with mean 0 and sd 1 in each channel, at least float32."""
    mean, sd = channel_statistics(map)
    return (map - mean[:, :, None, None]) / sd[:, :, None, None]


def style_code(image: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """The style of images: mean and sd of their channels and of those of each tap, (B, S).

    Pernice et al., Interventional Style Transfer, eq. 1, with the image itself as layer 0.
    image (B, C, H, W); taps as in `Features`; S = 2 (C + sum of widths), at least float32.
    """
    return torch.cat([part for map in (image, *taps) for part in channel_statistics(map)], dim=1)


def relative_code(own: Tensor, source: Tensor, target: Tensor, widths: Sequence[int]) -> Tensor:
    """`own`, moved by the affine map that takes `source` to `target`; style codes (B, S) each.

    In each layer mean' = target mean + (own mean − source mean) · r and sd' = own sd · r, with
    r = target sd / source sd. `widths` are the channels of each layer, the image first; S = 2 ·
    their sum.
    """
    sizes = [size for width in widths for size in (width, width)]
    layers = [torch.split(code, sizes, dim=1) for code in (own, source, target)]
    found = []
    for place in range(0, len(sizes), 2):
        (mean, sd), (from_mean, from_sd), (to_mean, to_sd) = (
            code[place : place + 2] for code in layers
        )
        ratio = to_sd / from_sd
        found += [to_mean + (mean - from_mean) * ratio, sd * ratio]
    return torch.cat(found, dim=1)
