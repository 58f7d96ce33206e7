"""The networks of IST: encoders that return their maps, the style code of maps, and a generator."""

from collections.abc import Sequence
from itertools import pairwise
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
    """Three strided convolutions, with taps at 1/2, 1/4 and 1/8, and one of 1 x 1.

    Not in the paper: small enough for a CPU. Means of rectified maps differ little between images;
    without the layer norm, which enlarges the differences, a few hundred steps teach little.
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


def gram(map: Tensor) -> Tensor:
    """Products of the channels of a map, summed over its pixels and divided by C · H · W.

    map (B, C, H, W) floating -> (B, C, C), symmetric, at least float32: Li et al., Demystifying
    Neural Style Transfer, 2017.
    """
    with torch.autocast(map.device.type, enabled=False):
        flat = map.flatten(2).to(torch.promote_types(map.dtype, torch.float32))
        return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def code_layers(style: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Mean and sd (B, width) of each layer of style codes (B, S), the image's first.

    `widths` are the channels of each layer; S = 2 · their sum.
    """
    parts = torch.split(style, [width for width in widths for _ in range(2)], dim=1)
    return list(zip(parts[::2], parts[1::2], strict=True))


def relative_code(own: Tensor, source: Tensor, target: Tensor, widths: Sequence[int]) -> Tensor:
    """`own`, moved by the affine map that takes `source` to `target`; style codes (B, S) each.

    In each layer mean' = target mean + (own mean − source mean) · r and sd' = own sd · r, with
    r = target sd / source sd. `widths` as in `code_layers`.
    """
    layers = (code_layers(code, widths) for code in (own, source, target))
    found = []
    for (mean, sd), (from_mean, from_sd), (to_mean, to_sd) in zip(*layers, strict=True):
        ratio = to_sd / from_sd
        found += [to_mean + (mean - from_mean) * ratio, sd * ratio]
    return torch.cat(found, dim=1)


def head_input(image: Tensor, features: Features) -> Tensor:
    """Input of heads that name environments, (B, features + S): the style code holds the gain."""
    return torch.cat([features.pooled, style_code(image, features.taps)], dim=1)


AdaIN = Literal["direct", "affine"]
Output = Literal["matched", "linear", "residual"]


def adaptive_instance_norm(map: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """The map with the given mean and sd in each channel: Huang and Belongie, AdaIN, 2017, eq. 8.

    map (B, C, H, W) floating; mean and sd (B, C). At least float32.
    """
    return instance_normalised(map) * sd[:, :, None, None] + mean[:, :, None, None]


class StyledConvolution(nn.Module):
    """A convolution, then AdaIN by the style's mean and sd of a layer of `code_width` channels.

    map (B, inputs, H, W), mean and sd (B, code_width) -> (B, width, H, W), not activated.
    direct: mean and sd become those of the output, and code_width equals width. affine: the output
    has sd 1 + gamma and mean beta, a linear function of both (Choi et al., StarGAN v2, 2020).
    """

    def __init__(self, inputs: int, width: int, code_width: int, adain: AdaIN) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False)
        self.affine = nn.Linear(2 * code_width, 2 * width) if adain == "affine" else None

    def forward(self, map: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
        drawn = self.convolution(map)
        if self.affine is None:
            return adaptive_instance_norm(drawn, mean, sd)
        gamma, beta = self.affine(torch.cat([mean, sd], dim=1)).float().chunk(2, dim=1)
        return adaptive_instance_norm(drawn, beta, 1 + gamma)


class UNetGenerator(nn.Module):
    """Redraws images in a style: upsample, join the content's map, convolve, AdaIN; layer by layer.

    `generator(image, taps, style)`: content images (B, C, H, W), their taps (`nets.tapped`),
    style codes (B, S) of `style_code` -> images (B, C, H, W), at least float32, unbounded.
    Pernice et al., Interventional Style Transfer, section 4.1. AdaIN comes after the skip is
    joined, so that the content's statistics do not bypass it. At full size the skip is the image,
    and AdaIN is always affine.

    `output`: linear, a convolution of the last maps; residual, a convolution of maps and image,
    added to the image; matched, a convolution of the maps, added to the image whose channels have
    the style's mean and sd. The last two begin with zeros: an image in its own style is unchanged.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], adain: AdaIN = "direct",
        output: Output = "matched",
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_form: Output = output
        self.code_sizes = [channels, *widths]
        """Channels of each layer of a style code, the image's first."""
        full = widths[0] // 2
        deepest = StyledConvolution(widths[-1], widths[-1], widths[-1], adain)
        inner = [
            StyledConvolution(below + width, width, width, adain)
            for width, below in pairwise(widths)
        ]
        finest = StyledConvolution(widths[0] + channels, full, channels, "affine")
        self.blocks = nn.ModuleList([finest, *inner, deepest])
        """One for each layer, the finest first."""
        seen = full + channels if output == "residual" else full
        self.to_image = nn.Conv2d(seen, channels, kernel_size=3, padding=1)
        if output != "linear":
            nn.init.zeros_(self.to_image.weight)
            nn.init.zeros_(self.to_image.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, taps: Sequence[Tensor], style: Tensor) -> Tensor:
        code = code_layers(style, self.code_sizes)
        map = self.blocks[-1](taps[-1], *code[-1])
        for layer in range(len(taps) - 1, -1, -1):
            skip = (image, *taps)[layer]
            below = functional.interpolate(functional.leaky_relu(map, 0.2), skip.shape[-2:])
            map = self.blocks[layer](torch.cat([below.to(skip.dtype), skip], dim=1), *code[layer])
        map = functional.leaky_relu(map, 0.2)
        if self.output_form == "residual":
            map = torch.cat([map.to(image.dtype), image], dim=1)
        drawn: Tensor = self.to_image(map).to(torch.promote_types(image.dtype, torch.float32))
        if self.output_form == "linear":
            return drawn
        base = image if self.output_form == "residual" else adaptive_instance_norm(image, *code[0])
        return base + drawn
