"""From stored values to the float32 a network sees; fitted on training rows alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deconfound.arrays import ROUNDING, Codes, Floats, Mask, Rows
from deconfound.config import ScalingName, StandardiseName, TransformName
from deconfound.data.loading.standardisation import (
    FEWEST,
    group_statistics,
    made_alike,
    measured,
    spectra_of_all,
    statistics,
    unseen_groups,
)
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

SCBD_OFFSET = SCBD_SCALE = 7.0  # of arcsinh'd pixels, in Makino et al.
SAMPLE = 4096
LOWEST, HIGHEST = 0.001, 0.999
GROUP_SAMPLE = 256


class Intensity(nn.Module):
    """(transform(x) − offset) · scale for every channel or feature; part of a run's checkpoint.

    With `groups` the transform percentile has limits for each of that number of groups, and for
    rows of any other group; or, with `standardise`, each group is made like all training rows
    between transform and scaling, and rows of any other group are left alone.
    """

    offset: Tensor
    scale: Tensor
    limits: Tensor
    """(groups + 1, 2, C): the 0.1 and 99.9 percentiles, in the last row those of all groups."""
    statistics: Tensor
    """(groups + 1, S, C): what `MEASURED` says of each group, in the last row of all groups."""

    def __init__(
        self,
        channels: int,
        transform: TransformName,
        groups: int = 0,
        standardise: StandardiseName | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.groups = groups
        self.standardise = standardise
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        if standardise is not None:
            shape = groups + 1, measured(standardise, channels), channels
            self.register_buffer("statistics", torch.zeros(shape))
        elif groups:
            self.register_buffer("limits", torch.zeros(groups + 1, 2, channels))

    def forward(self, pixels: Tensor, group: Tensor | None = None) -> Tensor:
        """Stored pixels (B, C, H, W) or profiles (B, D) of any dtype to float32 of that shape.

        `group` (B,) int64 is the group of each image, −1 for one that the fit never saw; it is
        needed where there are groups.
        """
        image = self.transformed(pixels, group)
        if self.standardise is not None:
            assert group is not None
            group = group.to(self.statistics.device)
            image = made_alike(image, self.statistics, group, self.standardise)
        sides = (1,) * (image.ndim - 2)
        return image.sub_(self.offset.view(-1, *sides)).mul_(self.scale.view(-1, *sides))

    def transformed(self, pixels: Tensor, group: Tensor | None = None) -> Tensor:
        """The same before groups are made alike, and before scaling."""
        image = pixels.to(torch.float32, copy=True)
        if self.transform == "arcsinh":
            image = torch.asinh_(image)
        elif self.transform == "percentile" and self.groups and self.standardise is None:
            assert group is not None
            limits = self.limits[group.to(self.limits.device)][..., None, None]
            image = _stretched(image, limits[:, 0], limits[:, 1])
        elif self.transform == "percentile":
            shares = image.new_tensor([LOWEST, HIGHEST])
            each = [torch.quantile(one, shares, dim=1) for one in image.flatten(2)]
            limits = torch.stack(each)[..., None, None]
            image = _stretched(image, limits[:, 0], limits[:, 1])
        return image

    def inverse(self, image: Tensor) -> Tensor:
        """Float32 images (B, C, H, W) or profiles (B, D) in stored units, not rounded or clipped.

        A channel that did not vary over the rows fitted on is the value that it had there. The
        transform percentile has no inverse: it forgets how bright images were; nor have groups made
        alike.
        """
        assert self.transform != "percentile" and self.standardise is None
        sides = (1,) * (image.ndim - 2)
        scale = self.scale.view(-1, *sides)
        pixels = torch.where(scale > 0, image / scale, 0.0) + self.offset.view(-1, *sides)
        return pixels.sinh() if self.transform == "arcsinh" else pixels


def _stretched(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`image` scaled so that `low` becomes 0 and `high` 1, clipped; flat channels become 0."""
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def fit_intensity(
    screen: Screen,
    rows: Rows,
    transform: TransformName,
    scaling: ScalingName,
    seed: int,
    group: Coded | None = None,
    standardise: StandardiseName | None = None,
    reference: Mask | None = None,
) -> Intensity:
    """Fit on at most 4,096 of `rows`: "standardise" to mean 0 and sd 1 a channel, "unit" to [0, 1].

    "unit" divides by the largest value the stored type can hold (float32 is taken to be in [0, 1]
    already) and "scbd", after "arcsinh", is (x − 7)/7, as Makino et al. (SCBD, A.3) scale Funk22;
    neither needs a fit. Profiles are standardised by feature. A channel or feature whose sd over
    the rows fitted on is rounding, no more than a millionth of its mean, becomes 0 in every row.
    With `group`, the codes of all rows of the screen, the transform percentile has limits for each
    group, from at most 256 of its `rows`; or, with `standardise`, each group is made like all of
    them by the statistics of its `rows`, of which those of `reference` (N,) count if it is given.
    Raises UserError for "unit" after "arcsinh", "scbd" after any other, for "percentile", "scbd"
    or "spectra" of profiles, and if fewer than 16 rows count.
    """
    if transform == "percentile" and screen.holds_profiles:
        raise UserError("--transform percentile is for images; profiles take none or arcsinh")
    if standardise == "spectra" and screen.holds_profiles:
        raise UserError("--standardise spectra is for images; profiles take quantiles or moments")
    if scaling == "scbd" and (transform != "arcsinh" or screen.holds_profiles):
        raise UserError("--scaling scbd is for images after --transform arcsinh; use standardise")
    groups = len(group.names) if group else 0
    intensity = Intensity(len(screen.channels), transform, groups, standardise)
    if group is not None and standardise is not None:
        counted = rows if reference is None else rows[reference[rows]]
        _fit_statistics(intensity, screen, counted, group, seed)
    elif group is not None:
        intensity.limits.copy_(_limits(screen, rows, group, seed))
    if scaling == "unit":
        if transform == "arcsinh":
            raise UserError("--scaling unit needs --transform none; use --scaling standardise")
        if transform == "none" and screen.dtype.kind == "u":
            intensity.scale.fill_(1.0 / float(np.iinfo(screen.dtype).max))
        return intensity
    if scaling == "scbd":
        intensity.offset.fill_(SCBD_OFFSET)
        intensity.scale.fill_(1.0 / SCBD_SCALE)
        return intensity
    sample = np.sort(numpy_stream(seed, "intensity").permutation(rows)[:SAMPLE])
    total: Any = 0.0
    squares: Any = 0.0
    for start in range(0, len(sample), 256):
        part = sample[start : start + 256]
        of_group = None if group is None else torch.from_numpy(group.codes[part])
        values = intensity(torch.from_numpy(screen.read(part)), of_group).double()
        values = values.flatten(2) if values.ndim > 2 else values[:, :, None]
        total = total + values.mean(dim=2).sum(dim=0)
        squares = squares + values.square().mean(dim=2).sum(dim=0)
    mean = total / len(sample)
    deviation = (squares / len(sample) - mean.square()).clamp(min=0).sqrt()
    intensity.offset.copy_(mean)
    varies = deviation > ROUNDING * mean.abs()
    intensity.scale.copy_(torch.where(varies, 1.0 / deviation, 0.0))
    return intensity


def _fit_statistics(
    intensity: Intensity, screen: Screen, rows: Rows, group: Coded, seed: int
) -> None:
    kind = intensity.standardise
    assert kind is not None
    if len(rows) < FEWEST:
        raise UserError(
            f"{screen.path}: {len(rows)} training rows count to standardise by; expected {FEWEST} "
            "or more, choose --standardise-with all or leave --standardise-by out"
        )
    known: dict[str, Floats] = {}
    if kind == "spectra":
        of_all, known = spectra_of_all(screen, rows, group, intensity.transformed, seed)
    else:
        of_all = statistics(screen, rows, kind, intensity.transformed, seed, "")
    own = group_statistics(screen, rows, group, kind, intensity.transformed, seed, of_all, known)
    intensity.statistics.copy_(torch.from_numpy(np.concatenate([own, of_all[None]])))


def learn_unseen(
    intensity: Intensity, screen: Screen, every: Coded, known: Codes, rows: Rows, seed: int
) -> Codes:
    """Give `intensity`, on the CPU, the statistics of groups that it was not fitted on.

    `every` is the group of each row of `screen`, `known` (N,) its code in the fit, −1 where it has
    none; `rows` count. Returns the codes (N,) that `intensity` takes from now on.
    """
    kind, before = intensity.standardise, intensity.groups
    assert kind is not None
    unseen = unseen_groups(every, known)
    if not unseen.names:
        return known
    of_all = intensity.statistics[-1:]
    own = group_statistics(
        screen, rows, unseen, kind, intensity.transformed, seed, of_all[0].numpy()
    )
    intensity.statistics = torch.cat([intensity.statistics[:-1], torch.from_numpy(own), of_all])
    intensity.groups += len(unseen.names)
    return np.where(unseen.codes >= 0, before + unseen.codes, known)


def _limits(screen: Screen, rows: Rows, group: Coded, seed: int) -> Tensor:
    """Percentiles (groups + 1, 2, C) of pixels of `rows`: of each group, and last of all rows."""
    stream = numpy_stream(seed, "percentiles")
    samples = [stream.permutation(rows[group.codes[rows] == g]) for g in range(len(group.names))]
    found = []
    for sample in [*samples, stream.permutation(rows)]:
        pixels = screen.read(np.sort(sample[:GROUP_SAMPLE])).swapaxes(0, 1)
        shares = np.quantile(pixels.reshape(len(pixels), -1), [LOWEST, HIGHEST], axis=1)
        found.append(torch.from_numpy(shares.astype(np.float32)))
    return torch.stack(found)
