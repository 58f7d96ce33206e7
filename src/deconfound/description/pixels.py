"""Brightness, saturation and empty images of a screen, channel by channel and environment."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Doubles, Rows
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import numpy_stream

CHUNK_PIXELS = 2**22


def sample_rows(environment: Coded, most: int) -> Rows:
    """At most `most` rows, ascending: equally many from every environment that has enough rows."""
    count = len(environment.codes)
    if count <= most:
        return np.arange(count, dtype=np.int64)
    order = numpy_stream(0, "describe").permutation(count)
    turn = pd.Series(environment.codes[order]).groupby(environment.codes[order]).cumcount()
    return np.sort(order[np.argsort(turn.to_numpy(), kind="stable")[:most]])


def pixel_statistics(
    screen: Screen, environment: Coded, rows: Rows, *, quiet: bool = False
) -> pd.DataFrame:
    """One row per environment and channel, from the images of `rows`.

    Columns: environment (missing where it is), channel, images (that were read), mean and sd of
    all pixels in stored units, saturated (share of pixels at the largest value of the type; missing
    for float32), black (images that are 0 everywhere), constant (images of one other value).
    """
    shape = (len(environment.names) + 1, len(screen.channels))
    images = np.zeros(shape[0])
    sums: dict[str, Doubles] = {name: np.zeros(shape) for name in _MEASURED}
    per_chunk = max(1, CHUNK_PIXELS // max(1, int(np.prod(screen.image_shape))))
    unit = "profiles" if screen.holds_profiles else "images"
    with Progress("describe", len(rows), unit, quiet=quiet) as progress:
        for start in range(0, len(rows), per_chunk):
            part = rows[start : start + per_chunk]
            place = environment.codes[part]
            np.add.at(images, place, 1)
            for name, values in _measured(screen.read(part)).items():
                np.add.at(sums[name], place, values)
            progress.update(len(part))
    return _table(screen, environment, images, sums)


_MEASURED = ("mean", "square", "saturated", "black", "constant")


def _measured(pixels: npt.NDArray[Any]) -> dict[str, Doubles]:
    """Sums and counts, (B, C) each, of pixels (B, C, H, W) or of profiles (B, C)."""
    if pixels.ndim == 2:
        values, none = pixels.astype(np.float64), np.zeros(pixels.shape)
        found = {"mean": values, "square": values**2, "saturated": none + np.nan}
        return found | {"black": none, "constant": none}
    flat = pixels.reshape(*pixels.shape[:2], -1)
    mean = flat.mean(axis=2, dtype=np.float64)
    low, high = flat.min(axis=2), flat.max(axis=2)
    full = np.iinfo(flat.dtype).max if flat.dtype.kind == "u" else None
    saturated = np.full(mean.shape, np.nan) if full is None else (flat == full).mean(axis=2)
    return {
        "mean": mean,
        "square": flat.var(axis=2, dtype=np.float64) + mean**2,
        "saturated": saturated,
        "black": np.asarray((low == 0) & (high == 0), dtype=np.float64),
        "constant": np.asarray((low == high) & (high != 0), dtype=np.float64),
    }


def _table(
    screen: Screen, environment: Coded, images: Doubles, sums: dict[str, Doubles]
) -> pd.DataFrame:
    rows = []
    for place in np.flatnonzero(images):
        name = [*environment.names, None][place]
        for c, channel in enumerate(screen.channels):
            mean = sums["mean"][place, c] / images[place]
            variance = sums["square"][place, c] / images[place] - mean**2
            rows.append(
                {
                    "environment": name,
                    "channel": channel,
                    "images": int(images[place]),
                    "mean": mean,
                    "sd": max(variance, 0.0) ** 0.5,
                    "saturated": sums["saturated"][place, c] / images[place],
                    "black": int(sums["black"][place, c]),
                    "constant": int(sums["constant"][place, c]),
                }
            )
    return pd.DataFrame(rows)
