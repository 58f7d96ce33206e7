"""What every kind of simulated cell is drawn with: its own random numbers, and its own frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Floats
from deconfound.runtime.seeds import numpy_stream

Values = dict[str, Floats]

POSE = ("OffsetX", "OffsetY", "Angle", "FieldX", "FieldY")
NODES = 9  # nodes a side of a smooth random field


def draw_pose(cells: int, seed: int) -> Values:
    """Where each cell lies: (N,) float32 by name.

    OffsetX/Y from the crop's centre in crop half-widths, Angle in radians, FieldX/Y the crop's
    place in the field of view in −1 … 1.
    """
    stream = numpy_stream(seed, "pose")
    offset = np.float32(0.06) * stream.standard_normal((2, cells), dtype=np.float32)
    angle = np.float32(2 * np.pi) * stream.random(cells, dtype=np.float32)
    field = 2 * stream.random((2, cells), dtype=np.float32) - 1
    return dict(zip(POSE, (*offset, angle, *field), strict=True))


class Draws:
    """Hands out each cell's own random numbers, in a fixed order."""

    def __init__(self, seed: int, cells: Sequence[int], normals: int, uniforms: int) -> None:
        """`normals` and `uniforms` are how many numbers of each kind one cell takes."""
        self._normal = np.empty((len(cells), normals), dtype=np.float32)
        self._uniform = np.empty((len(cells), uniforms), dtype=np.float32)
        for cell, normal, uniform in zip(cells, self._normal, self._uniform, strict=True):
            stream = numpy_stream(seed, "cell", cell)
            stream.standard_normal(out=normal, dtype=np.float32)
            stream.random(out=uniform, dtype=np.float32)

    def normal(self, count: int) -> Floats:
        """(N, count) standard normal float32."""
        taken, self._normal = np.split(self._normal, [count], axis=1)
        return taken

    def uniform(self, count: int) -> Floats:
        """(N, count) float32 in 0 … 1."""
        taken, self._uniform = np.split(self._uniform, [count], axis=1)
        return taken


@dataclass(frozen=True)
class Frame:
    """Pixel coordinates in each cell's own frame, (N, S, S), crop half-widths and radians."""

    axis: Floats
    cos: Floats
    sin: Floats
    origin_x: Floats
    origin_y: Floats
    u: Floats
    v: Floats
    radius: Floats
    angle: Floats

    def smooth(self, draws: Draws, side: int = NODES) -> Floats:
        """A smooth random field of unit variance, (N, S, S), with `side` nodes a side."""
        nodes = np.linspace(-1, 1, side, dtype=np.float32)
        basis = np.exp(-0.5 * np.square((self.axis[:, None] - nodes) / (1.5 / side)))
        basis /= np.sqrt(np.square(basis).sum(axis=1, keepdims=True))
        heights = draws.normal(side**2).reshape(-1, side, side)
        field: Floats = basis @ heights @ basis.T
        return field


def frame_of(values: Values, size: int) -> Frame:
    """The frame of every cell of (N,) poses in images of `size` pixels."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    origin_x, origin_y, angle = (values[n][:, None, None] for n in ("OffsetX", "OffsetY", "Angle"))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = axis[None, None, :] - origin_x, axis[None, :, None] - origin_y
    u, v = cos * x + sin * y, cos * y - sin * x
    return Frame(axis, cos, sin, origin_x, origin_y, u, v, np.hypot(u, v), np.arctan2(v, u))


def sharp(wave: Floats) -> Floats:
    """Narrow ridges 0 … 1 from a wave −1 … 1."""
    ridge: Floats = 0.5 + 0.5 * wave
    return ridge * ridge * ridge


def soft_step(depth: Floats) -> Floats:
    """0 outside, 1 inside."""
    step: Floats = np.tanh(depth)
    return 0.5 + 0.5 * step
