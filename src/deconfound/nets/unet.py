"""A U-Net generator: redraws the maps of a content image with a style image's statistics."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.nets.tapped import instance_normalised

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
        code = self.layers_of(style)
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

    def layers_of(self, style: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Mean and sd (B, width) of each layer of style codes (B, S), the image's first."""
        parts = torch.split(style, [size for size in self.code_sizes for _ in range(2)], dim=1)
        return list(zip(parts[::2], parts[1::2], strict=True))
