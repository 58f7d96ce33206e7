"""Stored pixels of any channel count as RGB pictures for the eye."""

from collections.abc import Sequence

import numpy as np

from deconfound.arrays import Bytes, Doubles, Pixels

PHOTOGRAPH = (("r", "g", "b"), ("red", "green", "blue"))
PERCENTILES = (0.5, 99.8)
COLOURS: dict[str, tuple[float, float, float]] = {
    "blue": (0.15, 0.35, 1.0),
    "red": (1.0, 0.15, 0.1),
    "green": (0.1, 0.85, 0.15),
    "magenta": (0.9, 0.1, 0.8),
    "yellow": (0.8, 0.7, 0.0),
    "cyan": (0.0, 0.7, 0.75),
}
STAINS = {
    "blue": ("dna", "dapi", "hoechst", "nucle"),
    "red": ("actin", "agp", "phalloidin"),
    "magenta": ("mito",),
    "yellow": ("rna", "syto"),
    "green": ("tubulin", "er", "concanavalin", "gfp"),
}


def contrast(pixels: Pixels, channels: Sequence[str]) -> Doubles:
    """Darkest and brightest value shown, (C, 2), of pixels (B, C, H, W) as they are stored.

    For a photograph (R, G, B) that is the whole range of the type, so that hues stay true; else the
    0.5th and 99.8th percentile of each channel over all images.
    """
    if is_photograph(channels):
        largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
        return np.tile([0.0, float(largest)], (len(channels), 1))
    return np.percentile(pixels.astype(np.float64), PERCENTILES, axis=(0, 2, 3)).T


def rgb(pixels: Pixels, channels: Sequence[str], bounds: Doubles) -> Bytes:
    """Pixels (B, C, H, W) in stored units as pictures (B, H, W, 3) uint8.

    A single channel is grey and a photograph keeps its colours; other channels are added in the
    colours of their stains. `bounds` (C, 2) comes from `contrast`; values beyond are clipped.
    """
    low, high = bounds[:, 0, None, None], bounds[:, 1, None, None]
    share = np.clip((pixels - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    mixed = np.einsum("bchw,ck->bhwk", share, channel_colours(channels))
    return np.asarray((np.clip(mixed, 0.0, 1.0) * 255).round(), dtype=np.uint8)


def is_photograph(channels: Sequence[str]) -> bool:
    """Whether the channels are the red, green and blue of a photograph."""
    return tuple(name.lower() for name in channels) in PHOTOGRAPH


def channel_colours(channels: Sequence[str]) -> Doubles:
    """The colour that `rgb` gives each channel: (C, 3), red, green and blue in 0 … 1."""
    if len(channels) == 1:
        return np.ones((1, 3))
    if is_photograph(channels):
        return np.eye(3)
    chosen: list[str | None] = []
    for name in channels:
        known = (colour for colour, stains in STAINS.items() if _mentions(name, stains))
        chosen.append(next((colour for colour in known if colour not in chosen), None))
    left = [colour for colour in COLOURS if colour not in chosen]
    names = list(COLOURS)
    return np.array(
        [
            COLOURS[colour or (left.pop(0) if left else names[place % len(names)])]
            for place, colour in enumerate(chosen)
        ]
    )


def _mentions(channel: str, stains: tuple[str, ...]) -> bool:
    name = channel.lower()
    return any(name.startswith(stain) if len(stain) > 2 else name == stain for stain in stains)
