"""Effects of a well's position: staining and background that change over the rows and columns."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.simulation.optics import Optics, tupled
from deconfound.data.tables.keys import row_and_column
from deconfound.runtime.seeds import numpy_stream

GAIN, BACKGROUND = 0.35, 0.05
"""Largest change from a plate's middle to its edge: of log gain, and of the full scale."""


def well_places(wells: "pd.Series[str]") -> Floats:
    """Column and row of each well, (N, 2) float32, −1 … 1 over those in use; others are 0, 0."""
    found = {name: row_and_column(name) for name in wells.unique().tolist()}
    grid = {name: (one[1], one[0]) for name, one in found.items() if one is not None}
    if not grid:
        return np.zeros((len(wells), 2), dtype=np.float32)
    where = np.array(list(grid.values()), dtype=np.float64)
    first, last = where.min(axis=0), where.max(axis=0)
    unit = (2 * where - first - last) / np.maximum(last - first, 1)
    place = dict(zip(grid, unit, strict=True))
    return np.array([place.get(name, (0.0, 0.0)) for name in wells], dtype=np.float32)


def with_position(
    optics: Optics, plate: Sequence[str], spread: Sequence[float], effect: float, seed: int
) -> Optics:
    """`optics` with the gradients of a plate, given by its groups, outermost first.

    Drawn as the other effects are: nested, with the `spread` of each level; 0 `effect` is none.
    """
    if not effect:
        return optics
    channels = len(optics.gain)
    total = np.zeros((4, channels))
    for depth, scale in enumerate(spread[: len(plate)]):
        stream = numpy_stream(seed, "position", *plate[: depth + 1])
        total += scale * stream.standard_normal((4, channels))
    slope = effect * np.tanh(total)
    return replace(
        optics,
        gain_across=tupled(GAIN * slope[0]),
        gain_down=tupled(GAIN * slope[1]),
        background_across=tupled(BACKGROUND * slope[2]),
        background_down=tupled(BACKGROUND * slope[3]),
    )


def at_place(optics: Optics, place: Floats) -> Optics:
    """The optics of a single well at `place` (2,): its gain and background, without gradients."""
    if not optics.gain_across:
        return optics
    gain, background = optics.by_place(place[None])
    return replace(
        optics,
        gain=tupled(np.array(optics.gain) * gain[0]),
        background=tupled(np.array(optics.background) + background[0]),
        gain_across=(),
        gain_down=(),
        background_across=(),
        background_down=(),
    )
