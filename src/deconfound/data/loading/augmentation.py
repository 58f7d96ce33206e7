"""Random changes of training images, each a pure function of the seed, the step and the image.

What each draws, and how much, is what the transform of MONAI of that kind does to one image; here a
batch is changed at once, since one image after the other takes longer than a step of training.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from deconfound.data.loading.batch import Batch
from deconfound.runtime.seeds import derived_seed, torch_stream

MARGIN = 8
"""An image is moved by up to its side divided by this."""
GAIN, OFFSET = 0.2, 0.2
"""Of `intensity`: share of a value, and of the channel's sd, at most, up or down."""
SIGMAS = tuple(0.25 + 1.25 * step / 7 for step in range(8))
"""Of `blur`, in pixels."""
BLURRED = 0.5
"""Share of images that are."""
NOISE = 0.1
"""Largest sd of `noise`, in sds of the channel."""
STYLE_GAIN, STYLE_GAMMA, STYLE_BLEED, STYLE_NOISE = 1.5, 1.5, 0.15, 0.2
"""Of `style`: largest factor, up or down; largest exponent, and one through it the smallest;
largest share of another channel; largest sd of noise, in sds of the channel."""


class _Draws:
    """Random numbers for every image of the batch over all processes, and this process's of them.

    This process has every `ranks`-th image, starting at `rank`. How many images there are in all
    changes nothing: each draw has its own stream, and an image its place in it.
    """

    def __init__(self, image: Tensor, purpose: tuple[int, str, int], rank: int, ranks: int) -> None:
        self._image, self._rank, self._ranks = image, rank, ranks
        seed, name, step = purpose
        self._seed = derived_seed(seed, "augment", name, step)
        self._calls = 0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, …) float32 on the device of the images."""
        size = len(self._image) * self._ranks, *shape
        drawn = self._own(torch.rand(size, generator=self._stream()))
        return (low + (high - low) * drawn).to(self._image.device)

    def whole(self, below: int, *shape: int) -> Tensor:
        """(B, …) int64 on the CPU."""
        size = len(self._image) * self._ranks, *shape
        return self._own(torch.randint(below, size, generator=self._stream()))

    def normal(self) -> Tensor:
        """Of the shape of the images, drawn on their device."""
        device, first = self._image.device, self._stream().initial_seed()
        drawn = torch.empty(self._image.shape, device=device)
        generator = torch.Generator(device)
        for place, one in enumerate(drawn):
            generator.manual_seed(first + self._rank + place * self._ranks)
            torch.randn(one.shape, generator=generator, device=device, out=one)
        return drawn

    def _stream(self) -> torch.Generator:
        self._calls += 1
        return torch_stream(self._seed, self._calls)

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self._rank :: self._ranks][: len(self._image)]


def augmented(
    batch: Batch, names: str, seed: int, step: int, rank: int = 0, ranks: int = 1
) -> Batch:
    """The batch with the augmentations in `names` ("none" for none), one after the other.

    A pure function of (seed, step). If the batch is every `ranks`-th row of a larger batch,
    starting at `rank`, its images are changed as in the larger batch. Amounts are relative to the
    image, so they are the same under every scaling.
    """
    image = batch.image
    for name in names.split():
        if name == "dihedral":
            turns = random_turns(image, len(image) * ranks, torch_stream(seed, "augment", step))
            image = dihedral(image, turns[rank::ranks][: len(image)])
        elif name != "none":
            image = CHANGES[name](image, _Draws(image, (seed, name, step), rank, ranks))
    return replace(batch, image=image)


def random_turns(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 on the CPU, each one of the eight symmetries of a square, for `dihedral`.

    Images (B, C, H, W) that are not square get flips and half turns only. `generator` lives on
    the CPU.
    """
    square = image.shape[-1] == image.shape[-2]
    return torch.randint(8 if square else 4, (count,), generator=generator)


def dihedral(image: Tensor, turns: Tensor) -> Tensor:
    """Flip and turn every image of (B, C, H, W) as `turns` (B,) of `random_turns` say."""
    out = torch.empty_like(image)
    for turn in sorted(set(turns.tolist())):
        chosen = (turns == turn).nonzero().squeeze(1).to(image.device)
        part = image[chosen]
        if turn & 1:
            part = part.flip(-1)
        if turn & 2:
            part = part.flip(-2)
        if turn & 4:
            part = part.transpose(-1, -2)
        out[chosen] = part
    return out


def _crop(image: Tensor, draws: _Draws) -> Tensor:
    """A window of the image's own size, moved at random; what it leaves is mirrored."""
    height, width = image.shape[-2:]
    by = min(height, width) // MARGIN
    if by == 0:
        return image
    padded = functional.pad(image, (by, by, by, by), mode="reflect")
    out = torch.empty_like(image)
    for place, (y, x) in enumerate(draws.whole(2 * by + 1, 2).tolist()):
        out[place] = padded[place, :, y : y + height, x : x + width]
    return out


def _intensity(image: Tensor, draws: _Draws) -> Tensor:
    """Each channel times 1 ± GAIN, plus ± OFFSET of its sd."""
    gain = draws.uniform(1 - GAIN, 1 + GAIN, image.shape[1], 1, 1)
    return image * gain + draws.uniform(-OFFSET, OFFSET, image.shape[1], 1, 1) * _sd(image)


def _blur(image: Tensor, draws: _Draws) -> Tensor:
    """Half of the images smoothed by a Gaussian, all channels alike."""
    chosen = draws.uniform(0, 1) < BLURRED
    return _smoothed(image, torch.where(chosen.cpu(), draws.whole(len(SIGMAS)), -1))


def _noise(image: Tensor, draws: _Draws) -> Tensor:
    """Gaussian noise, of an sd drawn for each image."""
    return image + draws.normal() * draws.uniform(0, NOISE, 1, 1, 1) * _sd(image)


def _style(image: Tensor, draws: _Draws) -> Tensor:
    """Gain and gamma of each channel above its lowest value, bleed, blur and noise."""
    channels = image.shape[1]
    gain, gamma = (
        draws.uniform(-math.log(most), math.log(most), channels, 1, 1).exp()
        for most in (STYLE_GAIN, STYLE_GAMMA)
    )
    low = image.amin(dim=(-2, -1), keepdim=True)
    span = (image.amax(dim=(-2, -1), keepdim=True) - low).clamp(min=1e-7)
    signal = ((image - low) / span) ** gamma * span * gain
    others = 1 - torch.eye(channels, device=image.device)
    bleed = draws.uniform(0, STYLE_BLEED, channels, channels) * others
    signal = signal + torch.einsum("bij,bjhw->bihw", bleed, signal)
    signal = _smoothed(signal, draws.whole(len(SIGMAS)))
    return low + signal + draws.normal() * draws.uniform(0, STYLE_NOISE, 1, 1, 1) * _sd(signal)


CHANGES: dict[str, Callable[[Tensor, _Draws], Tensor]] = {
    "crop": _crop, "style": _style, "intensity": _intensity, "blur": _blur, "noise": _noise,
}  # fmt: skip
"""What each name does to images (B, C, H, W), but for dihedral."""


def _sd(image: Tensor) -> Tensor:
    """(B, C, 1, 1)."""
    return image.std(dim=(-2, -1), correction=0, keepdim=True)


def _smoothed(image: Tensor, level: Tensor) -> Tensor:
    """Every image with the Gaussian of `SIGMAS` that `level` (B,) numbers; −1 leaves it alone."""
    from monai.networks.layers.convutils import gaussian_1d  # takes a second
    from monai.networks.layers.simplelayers import separable_filtering

    out = image.clone()
    for number, sigma in enumerate(SIGMAS):
        chosen = (level == number).nonzero().squeeze(1).to(image.device)
        if len(chosen):
            kernel = gaussian_1d(torch.tensor(sigma), normalize=True)
            out[chosen] = separable_filtering(image[chosen], [kernel, kernel], mode="replicate")
    return out
