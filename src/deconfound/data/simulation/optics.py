"""Staining and optics of simulated environments: nested draws, and what they do to an image."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deconfound.arrays import Floats
from deconfound.config import Options
from deconfound.runtime.seeds import numpy_stream

REFERENCE_SIZE = 48  # pixels of the crop that `Optics.blur` refers to
FIELD = 0.2  # width of a crop, as a fraction of the field of view


class EnvironmentOptions(Options):
    """How many nested environments a simulated or injected screen has, and how much they differ."""

    series: int = Field(4, ge=2)
    """Series, the outermost level (grid and lincs)."""
    sections: int = Field(2, ge=1)
    """Sections of a plate (grid only)."""
    maps: int = Field(6, ge=1)
    """Plate maps (lincs only)."""
    technical: float = Field(1.0, ge=0, le=1.5)
    """Scale of all staining and optics; 0 leaves clean images."""
    series_spread: float = Field(1.0, ge=0)
    """Standard deviation of the technical draws from series to series (grid and lincs)."""
    section_spread: float = Field(0.2, ge=0)
    """The same from section to section of a plate (grid only)."""
    label_overlap: float | None = Field(None, gt=0, le=1)
    """Largest fraction of a series' labels that another may hold too, the control among them: each
    treatment lies in two series alone (grid only). If not given, series share most."""
    position_effect: float = Field(0.0, ge=0, le=2)
    """Scale of the gradients of staining and background over the rows and columns of a plate."""
    seed: int = 0
    """Seed of everything; the same seed gives the same bits on the same kind of processor."""


@dataclass(frozen=True)
class Optics:
    """What one environment does to every image; one value per channel unless said otherwise."""

    gain: tuple[float, ...]
    """Factor on the staining."""
    gamma: tuple[float, ...]
    """Exponent of the staining's response."""
    background: tuple[float, ...]
    """Added light, fraction of the full scale."""
    bleed: tuple[tuple[float, ...], ...]
    """Row i: fraction of every other channel that leaks into channel i; 0 on the diagonal."""
    blur: tuple[float, ...]
    """Standard deviation of the point spread, pixels of a 48-pixel crop."""
    vignette: tuple[float, ...]
    """Loss of light at the corner of the field of view, fraction."""
    gradient_x: tuple[float, ...]
    """Slope of the illumination from the field's centre to its edge, fraction."""
    gradient_y: tuple[float, ...]
    shot: tuple[float, ...]
    """Noise standard deviation at full scale, growing with the root of the light."""
    read: tuple[float, ...]
    """Noise standard deviation in the dark, fraction of the full scale."""
    gain_across: tuple[float, ...] = ()
    """Change of log gain from the plate's middle to its last column; empty for none."""
    gain_down: tuple[float, ...] = ()
    """The same to its last row."""
    background_across: tuple[float, ...] = ()
    """Change of the background, likewise."""
    background_down: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON, of what there is."""
        return {name: value for name, value in asdict(self).items() if value != ()}

    def by_place(self, place: Floats) -> tuple[Floats, Floats]:
        """Factor on the staining, and light added, of wells at `place` (N, 2): (N, C) each.

        A place is the column and the row, −1 … 1. The background never falls below 0.
        """
        gain = np.exp(place @ np.array([self.gain_across, self.gain_down], dtype=np.float32))
        added = place @ np.array([self.background_across, self.background_down], dtype=np.float32)
        return gain, np.maximum(added, -np.array(self.background, dtype=np.float32))


def optics_from(values: dict[str, Any]) -> Optics:
    """The optics that `Optics.as_dict` wrote, from JSON or not."""
    return Optics(**{f.name: tupled(values[f.name]) for f in fields(Optics) if f.name in values})


def no_optics(channels: int) -> Optics:
    """Optics that leave an image as it is."""
    one, zero = (1.0,) * channels, (0.0,) * channels
    return Optics(one, one, zero, (zero,) * channels, zero, zero, zero, zero, zero, zero)


def draw_optics(
    environment: Sequence[str],
    spread: Sequence[float],
    channels: int,
    technical: float,
    seed: int,
) -> Optics:
    """Optics of one environment: the sum of a draw of each of its nested groups.

    `environment` names the groups, outermost first ("S1", "P2", "A"); `spread` gives the standard
    deviation of each level's draws. Two environments share the draws of the groups they share.
    `technical` scales every effect: 0 is `no_optics`, 1 the full effect.
    """
    count = 9 * channels + channels**2
    total = np.zeros(count)
    for depth, scale in enumerate(spread[: len(environment)]):
        stream = numpy_stream(seed, "optics", *environment[: depth + 1])
        total += scale * stream.standard_normal(count)
    draws = np.split(total, [channels * k for k in range(1, 10)])
    gain, gamma, background, blur, vignette, gradient_x, gradient_y, shot, read, bleed = draws
    neighbours = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels))) == 1
    leak = 0.08 * np.exp(0.6 * bleed.reshape(channels, channels)) * neighbours
    return Optics(
        gain=tupled(np.exp(technical * 0.9 * np.tanh(0.55 * gain))),
        gamma=tupled(np.exp(technical * 0.25 * gamma)),
        background=tupled(technical * np.minimum(0.05 * np.exp(0.6 * background), 0.3)),
        bleed=tupled(technical * np.minimum(leak, 0.4)),
        blur=tupled(technical * np.minimum(0.6 * np.exp(0.35 * blur), 1.5)),
        vignette=tupled(technical * 0.5 / (1 + np.exp(-vignette))),
        gradient_x=tupled(technical * 0.25 * np.tanh(gradient_x)),
        gradient_y=tupled(technical * 0.25 * np.tanh(gradient_y)),
        shot=tupled(technical * np.minimum(0.03 * np.exp(0.5 * shot), 0.15)),
        read=tupled(technical * np.minimum(0.008 * np.exp(0.5 * read), 0.04)),
    )


def apply_optics(
    clean: Floats, optics: Optics, field: Floats, noise: Floats, place: Floats | None = None
) -> Floats:
    """Images as the environment's microscope records them: (N, C, S, S) float32, 0 … 1.

    `clean` (N, C, S, S) in 0 … 1; `field` (N, 2) the crop's centre (x, y) in the field of view,
    −1 … 1; `noise` (N, C, S, S) standard normal draws, which the environment only scales; `place`
    (N, 2) the well's column and row on the plate, −1 … 1, the middle if not given. In turn:
    staining (gamma, gain, background), illumination, bleed-through, blur, noise.
    """
    size = clean.shape[-1]
    image: Floats = _per_channel(optics.gain) * np.power(clean, _per_channel(optics.gamma))
    by_place = optics.by_place(place) if optics.gain_across and place is not None else None
    if by_place is not None:
        image *= by_place[0][:, :, None, None]
    image += _per_channel(optics.background)
    if by_place is not None:
        image += by_place[1][:, :, None, None]
    image *= _illumination(optics, field, size)
    mixing = np.eye(len(optics.gain), dtype=np.float32) + np.array(optics.bleed, dtype=np.float32)
    image = (mixing @ image.reshape(*image.shape[:2], -1)).reshape(image.shape)
    if any(optics.blur):
        spread = np.stack([_blur_matrix(sd * size / REFERENCE_SIZE, size) for sd in optics.blur])
        image = np.matmul(np.matmul(spread, image), spread.swapaxes(1, 2))
    variance = np.square(_per_channel(optics.shot)) * image + np.square(_per_channel(optics.read))
    image += np.sqrt(np.maximum(variance, 0)) * noise
    return np.clip(image, 0, 1, out=image)


def digitised(image: Floats, dtype: str) -> npt.NDArray[Any]:
    """Rounded counts of `dtype` ("uint8" or "uint16"); 1.0 becomes the type's largest value."""
    counts: npt.NDArray[Any] = np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)
    return counts


def _illumination(optics: Optics, field: Floats, size: int) -> Floats:
    pixel = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1) * np.float32(FIELD)
    x = (field[:, 0, None] + pixel)[:, None, None, :]
    y = (field[:, 1, None] + pixel)[:, None, :, None]
    light = 1 + _per_channel(optics.gradient_x) * x + _per_channel(optics.gradient_y) * y
    light -= _per_channel(optics.vignette) * ((x * x + y * y) / np.float32(2))
    return np.maximum(light, 0.05, out=light)


def _blur_matrix(spread: float, size: int) -> Floats:
    """(size, size) Gaussian weights of every pixel for every pixel of a line; rows sum to 1."""
    if spread == 0:
        return np.eye(size, dtype=np.float32)
    place = np.arange(size)
    weight = np.exp(-0.5 * np.square((place[:, None] - place) / spread))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight.astype(np.float32)


def _per_channel(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float32)[:, None, None]


def tupled(values: Any) -> tuple[Any, ...]:
    """Arrays and lists as tuples of numbers."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return tuple(tupled(v) if isinstance(v, list | tuple) else float(v) for v in plain)
