"""Groups of images made alike: what is measured of a group, and what its values are mapped to.

Caicedo et al., Data-analysis strategies for image-based cell profiling, 2017, centre and scale
profiles plate by plate; here it is done to the pixels too, before a network sees them.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import ROUNDING, Codes, Doubles, Floats, Rows
from deconfound.config import StandardiseName
from deconfound.data.loading.spectra import BANDS, cross_spectra, filtered, transport
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded
from deconfound.errors import InputWarning, UserError
from deconfound.runtime.device import processes
from deconfound.runtime.seeds import numpy_stream

FEWEST = 16
"""Least images, or controls, of a group that has statistics of its own."""
ROWS, PIXELS = 2048, 1024
"""Images of a group, and pixels of each of them, that its statistics are taken over at most."""
READ = 256
BLOCK = 2**21
"""Values sorted at a time."""
SHARES = np.array([0.001, *np.arange(1, 64) / 64, 0.999])
"""Quantiles that a tone curve joins."""
MEASURED = {"moments": 2, "robust": 3, "quantiles": len(SHARES), "spectra": len(SHARES)}
"""Numbers that are measured of each channel: mean and sd; median, median and mean absolute
deviation from it; the quantiles `SHARES`. Of spectra, as many bands times channels besides."""
SPECTRA = 512
"""Images of a group that its spectra are taken over at most."""
NAMED = 5
"""Groups that a warning names at most."""


def measured(kind: StandardiseName, channels: int) -> int:
    """How many numbers are measured of each of `channels` channels."""
    return MEASURED[kind] + (BANDS * channels if kind == "spectra" else 0)


Transform = Callable[[Tensor], Tensor]
"""Stored pixels or profiles to the float32 that is measured."""


def group_statistics(
    screen: Screen,
    rows: Rows,
    group: Coded,
    kind: StandardiseName,
    transform: Transform,
    seed: int,
    of_all: Floats,
    known: Mapping[str, Floats] = MappingProxyType({}),
) -> Floats:
    """(G, S, C) float32: what `MEASURED` says of each group of `group`, over its `rows`.

    What is `known` of groups by name is not measured again.

    A group with fewer than 16 of the `rows` takes `of_all` (S, C), and an InputWarning names it. At
    most 2,048 rows of a group count, and 1,024 pixels of each, drawn by the seed and the name of
    the group alone.
    """
    found, few = [], []
    for code, name in enumerate(group.names):
        members = rows[group.codes[rows] == code]
        if len(members) < FEWEST:
            few.append(f"{name} ({len(members)})")
            found.append(of_all)
        else:
            of = known.get(name)
            if of is None:
                of = statistics(screen, members, kind, transform, seed, name, of_all)
            found.append(of)
    if few and processes().rank == 0:
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        warnings.warn(
            f"{screen.path}: fewer than {FEWEST} rows to standardise by of "
            f"{', '.join(few[:NAMED])}{more}: the statistics of all training rows stand in",
            InputWarning,
            stacklevel=2,
        )
    return np.stack(found)


def spectra_of_all(
    screen: Screen, rows: Rows, group: Coded, transform: Transform, seed: int
) -> tuple[Floats, dict[str, Floats]]:
    """What groups are brought to where spectra become alike, their means; and theirs by name.

    (S, C) float32 each. Each group of 16 `rows` or more counts as much as another; all rows are
    one, named "", where none has 16.
    """
    members = [rows[group.codes[rows] == code] for code in range(len(group.names))]
    named = [pair for pair in zip(group.names, members, strict=True) if len(pair[1]) >= FEWEST]
    named = named or [("", rows)]
    own = [statistics(screen, one, "quantiles", transform, seed, name) for name, one in named]
    tones = np.mean(own, axis=0)
    powers = [mean_spectra(screen, one, tones, transform, seed, name) for name, one in named]
    known = {
        name: np.concatenate([quantiles, power])
        for (name, _), quantiles, power in zip(named, own, powers, strict=True)
    }
    return np.mean(list(known.values()), axis=0), known


def mean_spectra(
    screen: Screen, rows: Rows, tones: Floats, transform: Transform, seed: int, name: str
) -> Floats:
    """(BANDS · C, C) float32: cross-spectra of at most 512 rows, each with the quantiles `tones`.

    So they do not depend on brightness and contrast.
    """
    drawn = np.sort(numpy_stream(seed, "spectra", name).permutation(rows)[:SPECTRA])
    total = torch.zeros(BANDS, len(screen.channels), len(screen.channels))
    for part in np.split(drawn, np.arange(READ, len(drawn), READ)):
        image = transform(torch.from_numpy(screen.read(part)))
        total += cross_spectra(with_tones(image, torch.from_numpy(tones))).sum(dim=0)
    return np.asarray((total / len(drawn)).flatten(0, 1).numpy())


def statistics(
    screen: Screen,
    rows: Rows,
    kind: StandardiseName,
    transform: Transform,
    seed: int,
    name: str,
    of_all: Floats | None = None,
) -> Floats:
    """(S, C) float32: what `MEASURED` says of the `rows`, drawn as in `group_statistics`.

    Spectra are those of `mean_spectra` with the quantiles of `of_all`.
    """
    stream = numpy_stream(seed, "standardise", name)
    drawn = np.sort(stream.permutation(rows)[:ROWS])
    places = np.sort(stream.permutation(math.prod(screen.image_shape[1:]))[:PIXELS])
    parts = []
    for part in np.split(drawn, np.arange(READ, len(drawn), READ)):
        values = transform(torch.from_numpy(screen.read(part)))
        values = values.flatten(2) if values.ndim > 2 else values[:, :, None]
        parts.append(values[:, :, places].numpy())
    every = np.concatenate(parts).swapaxes(0, 1).reshape(len(screen.channels), -1)
    step = max(1, BLOCK // every.shape[1])
    blocks = [every[start : start + step] for start in range(0, len(every), step)]
    found = np.concatenate(
        [_measured(block.astype(np.float64), kind) for block in blocks], axis=1
    ).astype(np.float32)
    if not np.isfinite(found).all():
        of = f"of {name} " if name else ""
        raise UserError(
            f"{screen.path}: values {of}that are to be standardised by are not finite; remove "
            "those rows, or leave --standardise-by out"
        )
    if kind == "spectra":
        assert of_all is not None
        power = mean_spectra(screen, rows, of_all[: len(SHARES)], transform, seed, name)
        return np.concatenate([found, power])
    return found


def image_quantiles(image: Tensor) -> Tensor:
    """The quantiles `SHARES` of each channel's pixels, (B, C, H, W) floating to (B, Q, C)."""
    values = image.flatten(2).sort(dim=2).values
    place = torch.from_numpy(SHARES).to(values.device) * (values.shape[2] - 1)
    lower = place.floor().long().clamp(max=values.shape[2] - 2)
    part = (place - lower).to(values.dtype)
    return torch.lerp(values[:, :, lower], values[:, :, lower + 1], part).mT


def with_tones(image: Tensor, tones: Tensor) -> Tensor:
    """Images (B, C, H, W) float32, each mapped so that its own quantiles become `tones` (S, C)."""
    return along_curve(image, image_quantiles(image), tones)


def _measured(values: Doubles, kind: StandardiseName) -> Doubles:
    """(S, C) of the values (C, M) of channels."""
    if kind == "moments":
        return np.stack([values.mean(axis=1), values.std(axis=1)])
    if kind in ("quantiles", "spectra"):
        return np.asarray(np.quantile(values, SHARES, axis=1))
    median = np.median(values, axis=1)
    away = np.abs(values - median[:, None])
    return np.stack([median, np.median(away, axis=1), away.mean(axis=1)])


def unseen_groups(every: Coded, known: Codes) -> Coded:
    """The groups of `every` row (N,) whose code in `known` (N,) is −1, numbered among themselves.

    The codes are −1 for rows of a known group, and for those of none.
    """
    unseen = (known < 0) & (every.codes >= 0)
    own, codes = np.unique(every.codes[unseen], return_inverse=True)
    found = np.full(len(known), -1, dtype=np.int64)
    found[unseen] = codes
    return Coded(found, tuple(every.names[code] for code in own))


def made_alike(image: Tensor, statistics: Tensor, group: Tensor, kind: StandardiseName) -> Tensor:
    """Images (B, C, H, W) or profiles (B, D) float32, each mapped from its group to all groups.

    `statistics` (G + 1, S, C) are those of the groups, the last those of all; `group` (B,) int64 is
    the group of each image, −1 for none. A channel whose spread in a group is rounding is shifted
    there alone.
    """
    target = statistics[-1]
    if kind in ("quantiles", "spectra"):
        tones = statistics[:, : len(SHARES)]
        rows = max(1, BLOCK // tones[-1].numel())
        parts = zip(torch.split(image, rows), torch.split(group, rows), strict=True)
        image = torch.cat([along_curve(some, tones[of], tones[-1]) for some, of in parts])
        if kind == "quantiles":
            return image
        present, place = torch.unique(group, return_inverse=True)
        channels = image.shape[1]
        spectra = statistics[:, len(SHARES) :].view(-1, BANDS, channels, channels)
        return filtered(image, transport(spectra[present], spectra[-1])[place])
    own = statistics[group]
    gain = torch.ones_like(own[:, 0])
    for spread in range(MEASURED[kind] - 1, 0, -1):  # the mean deviation where the median one is 0
        varies = own[:, spread] > ROUNDING * own[:, 0].abs()
        varies &= target[spread] > ROUNDING * target[0].abs()
        gain = torch.where(varies, target[spread] / own[:, spread], gain)
    sides = (1,) * (image.ndim - 2)
    centre, scale = (one.reshape(*one.shape, *sides) for one in (own[:, 0], gain))
    return (image - centre).mul_(scale).add_(target[0].view(-1, *sides))


def along_curve(image: Tensor, own: Tensor, target: Tensor) -> Tensor:
    """Each value of images (B, C, …) on the line between the quantiles around it.

    The quantiles of each image's group, `own` (B, S, C), are mapped to `target` (S, C), or to each
    image's (B, S, C); those of a group that are one value, to the middle of theirs. Beyond the
    outermost quantiles the outermost line goes on; where that joins one value, values are shifted,
    and so they are everywhere where all quantiles are one.
    """
    knots = own.transpose(1, 2).contiguous()
    mapped = target.mT.expand_as(knots)
    first, last = torch.searchsorted(knots, knots), torch.searchsorted(knots, knots, right=True) - 1
    mapped = (mapped.gather(2, first) + mapped.gather(2, last)) / 2
    values = (image.flatten(2) if image.ndim > 2 else image[:, :, None]).contiguous()
    upper = torch.searchsorted(knots, values).clamp_(1, knots.shape[2] - 1)
    lower = upper - 1
    x0, x1 = knots.gather(2, lower), knots.gather(2, upper)
    y0, y1 = mapped.gather(2, lower), mapped.gather(2, upper)
    span = x1 - x0
    on_line = torch.where(values == x1, y1, y0 + (values - x0) / span * (y1 - y0))
    shifted = torch.where(values > x1, y1 + (values - x1), y0 + (values - x0))
    beyond = (values < x0) | (values > x1) | (span == 0)
    found = torch.where(beyond & (span <= ROUNDING * x0.abs()), shifted, on_line)
    middle = own[:, own.shape[1] // 2, :, None]
    even = (own[:, -1] - own[:, 0])[:, :, None] <= ROUNDING * middle.abs()
    move = target[..., own.shape[1] // 2, :, None] - middle
    return torch.where(even, values + move, found).view(image.shape)
