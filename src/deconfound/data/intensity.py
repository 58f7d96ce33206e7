"""From stored values to the float32 a network sees; fitted on training rows alone."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deconfound.data.screen import Rows, Screen
from deconfound.errors import UserError
from deconfound.streams import numpy_stream

Transform = Literal["none", "arcsinh", "percentile"]
Scaling = Literal["standardise", "unit"]
SAMPLE = 4096
LOWEST, HIGHEST = 0.001, 0.999
CONSTANT = 1e-6


class Intensity(nn.Module):
    """(transform(x) − offset) · scale for every channel or feature; part of a run's checkpoint.

    `forward` takes stored pixels (B, C, H, W) of any numeric dtype, or profiles (B, D), and
    returns float32.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, channels: int, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Stored pixels (B, C, H, W) or profiles (B, D) to float32 of the same shape."""
        image = pixels.to(torch.float32, copy=True)
        if self.transform == "arcsinh":
            image = torch.asinh_(image)
        elif self.transform == "percentile":
            stretched = [_between_percentiles(one) for one in image.flatten(2)]
            image = torch.stack(stretched).view_as(image)
        sides = (1,) * (image.ndim - 2)
        return image.sub_(self.offset.view(-1, *sides)).mul_(self.scale.view(-1, *sides))


def _between_percentiles(image: Tensor) -> Tensor:
    """Channels (C, H·W): the 0.1 percentile of each to 0, 99.9 to 1, clipped; flat ones to 0."""
    limits = torch.quantile(image, image.new_tensor([LOWEST, HIGHEST]), dim=1, keepdim=True)
    return ((image - limits[0]) / (limits[1] - limits[0]).clamp(min=1e-6)).clamp(0, 1)


def fit_intensity(
    screen: Screen, rows: Rows, transform: Transform, scaling: Scaling, seed: int
) -> Intensity:
    """Fit on at most 4,096 of `rows`: "standardise" to mean 0 and sd 1 a channel, "unit" to [0, 1].

    "unit" divides by the largest value the stored type can hold (float32 is taken to be in [0, 1]
    already) and needs no fit. Profiles are standardised by feature; a feature that does not vary
    over the rows fitted on becomes 0 in every row. Raises UserError for "unit" after "arcsinh" and
    for "percentile" of profiles.
    """
    if transform == "percentile" and screen.holds_profiles:
        raise UserError("--transform percentile is for images; profiles take none or arcsinh")
    intensity = Intensity(len(screen.channels), transform)
    if scaling == "unit":
        if transform == "arcsinh":
            raise UserError("--scaling unit needs --transform none; use --scaling standardise")
        if transform == "none" and screen.dtype.kind == "u":
            intensity.scale.fill_(1.0 / float(np.iinfo(screen.dtype).max))
        return intensity
    sample = np.sort(numpy_stream(seed, "intensity").permutation(rows)[:SAMPLE])
    total: Any = 0.0
    squares: Any = 0.0
    for start in range(0, len(sample), 256):
        values = intensity(torch.from_numpy(screen.read(sample[start : start + 256]))).double()
        values = values.flatten(2) if values.ndim > 2 else values[:, :, None]
        total = total + values.mean(dim=2).sum(dim=0)
        squares = squares + values.square().mean(dim=2).sum(dim=0)
    mean = total / len(sample)
    deviation = (squares / len(sample) - mean.square()).clamp(min=0).sqrt()
    intensity.offset.copy_(mean)
    if screen.holds_profiles:
        # Features differ in size by orders of magnitude, so "does not vary" is relative: no more
        # than the rounding of a float32 mean.
        varies = deviation > CONSTANT * mean.abs()
        intensity.scale.copy_(torch.where(varies, 1.0 / deviation, 0.0))
    else:
        intensity.scale.copy_(1.0 / deviation.clamp(min=1e-6))
    return intensity
