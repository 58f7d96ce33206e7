"""Styles of sets of images: tones, spectra and maps, and their means over each environment.

Not in Pernice et al., Interventional Style Transfer, 2023, where a style is that of one image.
Means over many images say what their environment adds, without what single cells do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.data.loading.spectra import BANDS, cross_spectra, filtered, transport
from deconfound.data.loading.standardisation import (
    SHARES,
    along_curve,
    image_quantiles,
    with_tones,
)
from deconfound.nets.ist import gram, relative_code, style_code

TONES = len(SHARES)


class SetStyle(NamedTuple):
    """The parts of styles (B, S)."""

    tones: Tensor
    """(B, TONES, C): quantiles of pixels."""
    spectra: Tensor
    """(B, BANDS, C, C), of images brought to one set of tones."""
    code: Tensor
    """(B, 2 (C + sum of widths)): `style_code`."""


class RunningMean(nn.Module):
    """The mean over images of each environment, of a tensor that images have."""

    count: Tensor
    """(environments,) float32: images of each so far."""
    mean: Tensor
    """(environments, *shape) float32; where there is no image, what it was begun with."""

    def __init__(self, environments: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(environments))
        self.register_buffer("mean", torch.zeros(environments, *shape))

    @torch.no_grad()
    def add(self, environment: Tensor, value: Tensor) -> None:
        """Count the values (B, *shape) of images of the environments (B,) in; −1 is left out."""
        known = environment >= 0
        of = functional.one_hot(environment[known], len(self.count)).to(self.mean.dtype)
        self.count += of.sum(dim=0)
        share = of / self.count.clamp(min=1)
        flat = self.mean.flatten(1)
        own = value[known].flatten(1).to(flat.dtype)
        moved = share.T @ own - share.sum(dim=0)[:, None] * flat
        self.mean += moved.view_as(self.mean)

    def of(self, environment: Tensor, otherwise: Tensor) -> Tensor:
        """The means of environments (B,): (B, *shape), `otherwise` (B, *shape) where none is."""
        row = environment.clamp(min=0)
        known = (environment >= 0) & (self.count[row] > 0)
        sides = (-1,) + (1,) * (otherwise.ndim - 1)
        return torch.where(known.view(sides), self.mean[row], otherwise)


class SetStyles(nn.Module):
    """Styles of images of `channels` with maps of `widths`, and what environments have on average.

    A style (B, S) is that of one image; the mean of the styles of a set is the set's.
    """

    def __init__(self, channels: int, widths: Sequence[int], environments: int) -> None:
        super().__init__()
        self.channels, self.widths = channels, tuple(widths)
        size = channels * (TONES + BANDS * channels) + 2 * (channels + sum(widths))
        self.styles = RunningMean(environments, (size,))
        self.grams = nn.ModuleList(RunningMean(environments, (width, width)) for width in widths)
        self.common = RunningMean(1, (TONES, channels))
        """The tones that images are brought to before their spectra are taken and changed."""
        normal = torch.special.ndtri(torch.from_numpy(SHARES)).float()
        self.common.mean.copy_(normal[None, :, None])

    def count_tones(self, tones: Tensor) -> None:
        """Count the quantiles (B, TONES, C) of images in, for the common tones."""
        self.common.add(torch.zeros(len(tones), dtype=torch.int64, device=tones.device), tones)

    def count(self, environment: Tensor, styles: Tensor, grams: Sequence[Tensor]) -> None:
        """Count images of environments (B,) in, −1 left out, with their Gram matrices by layer."""
        self.styles.add(environment, styles)
        for mean, one in zip(self.grams, grams, strict=True):
            mean.add(environment, one)  # type: ignore[operator]

    def mean_grams(self, environment: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:
        """The mean Gram matrices of environments (B,), or of the maps `taps` without one."""
        layers = zip(self.grams, taps, strict=True)
        return [mean.of(environment, gram(tap)) for mean, tap in layers]  # type: ignore[operator]

    def forward(self, image: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """Styles (B, S) float32 of images (B, C, H, W) with maps `taps`."""
        image = image.float()
        tones = image_quantiles(image)
        spectra = cross_spectra(along_curve(image, tones, self.common.mean[0]))
        return torch.cat([tones.flatten(1), spectra.flatten(1), style_code(image, taps)], dim=1)

    def parts(self, style: Tensor) -> SetStyle:
        """The parts of styles (B, S)."""
        sizes = [TONES * self.channels, BANDS * self.channels**2]
        tones, spectra, code = torch.split(style, [*sizes, style.shape[1] - sum(sizes)], dim=1)
        matrices = spectra.reshape(-1, BANDS, self.channels, self.channels)
        return SetStyle(tones.reshape(-1, TONES, self.channels), matrices, code)

    def transfer(
        self, image: Tensor, style: Tensor, own: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) as if taken where the set `style` was, and not where `source` was.

        Along the curve from the source's tones to the common ones, then in each band of
        frequencies by the optimal transport between the spectra of both sets, then along the curve
        to the tones of `style`. `own` are the images' own styles, which stand in for a `source` of
        NaN; spectra then stay. All (B, S). Returns the images float32, and the codes that their
        maps are to have.
        """
        target, of_image = self.parts(style), self.parts(own)
        unknown = source.isnan()
        known = self.parts(torch.where(unknown, own, source))
        alone = unknown[:, :1, None, None]
        spectra = torch.where(alone, target.spectra, known.spectra)
        common = self.common.mean[0]
        image = along_curve(image.float(), known.tones, common)
        image = filtered(image, transport(spectra, target.spectra))
        image = along_curve(image, common.expand(len(image), -1, -1), target.tones)
        layers = (self.channels, *self.widths)
        return image, relative_code(of_image.code, known.code, target.code, layers)

    def toned(self, image: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Each image with the tones of its style, float32, and the style's code."""
        target = self.parts(style)
        return with_tones(image.float(), target.tones), target.code
