"""Clean images of simulated cells: nucleus, actin, tubulin and mitochondria from their traits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Floats
from deconfound.data.simulation.phenotype import TRAITS
from deconfound.runtime.seeds import numpy_stream

Values = dict[str, Floats]

CHANNELS = ("DNA", "actin", "tubulin", "mitochondria")
POSE = ("OffsetX", "OffsetY", "Angle", "FieldX", "FieldY")

EXPOSURE = 0.45  # fraction of the full scale that a typical bright structure reaches
EDGE = 0.04  # half-width of an outline's soft edge, crop half-widths
HARMONICS = 4  # of a cell's outline
NODES = 9  # nodes a side of a smooth random field
TRAINS = 3  # wave trains that overlap in a mesh of fibres
CLUMPS = 4  # where clustered mitochondria gather
NORMALS, UNIFORMS = 596, 214  # numbers that one cell takes
BEADS = (-1.5, 0.0, 1.5)  # a mitochondrion is a short chain of round beads
MITOCHONDRIA = int(next(trait.high for trait in TRAITS if trait.name == "MitoNumber"))


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


def render_cells(values: Values, seed: int, cells: Sequence[int], size: int) -> Floats:
    """Images without noise, blur or staining differences: (N, 4, size, size) float32, 0 … 1.

    `values` holds (N,) float32 for every trait and pose; what they leave open (chromatin, fibre
    phases, places of mitochondria) comes from a stream of (seed, cell) alone, so an image depends
    neither on the other cells nor on their order.
    """
    draws = _Draws(seed, cells)
    frame = _frame(values, size)
    outline = _Outline(values["CellSpread"], draws)
    nucleus = _nucleus(values, frame, draws)
    rim = outline.radius(frame.angle) - frame.radius
    body = np.maximum(_soft_step(rim / EDGE), nucleus.inside)
    chromatin = np.maximum(0.75 + 0.2 * frame.smooth(draws), 0)
    actin = _actin(values, frame, draws)
    tubulin = _tubulin(values, frame, nucleus, draws)
    mitochondria = _mitochondria(values, frame, nucleus, outline, draws)
    cortex = np.exp(-np.square(rim / 0.07))
    image = np.stack(
        [
            nucleus.inside * chromatin + 0.02 * body,
            body * (0.1 + 0.9 * actin) * (1 - 0.3 * nucleus.inside) + 0.35 * cortex,
            body * (0.08 + tubulin) * (1 - 0.5 * nucleus.inside),
            body * (0.05 + 0.95 * mitochondria) * (1 - 0.85 * nucleus.inside),
        ],
        axis=1,
    )
    brightness = EXPOSURE * np.exp(0.12 * draws.normal(len(CHANNELS)))
    image *= brightness[:, :, None, None]
    return np.clip(image, 0, 1, out=image)


class _Draws:
    """Hands out each cell's own random numbers, in a fixed order."""

    def __init__(self, seed: int, cells: Sequence[int]) -> None:
        self._normal = np.empty((len(cells), NORMALS), dtype=np.float32)
        self._uniform = np.empty((len(cells), UNIFORMS), dtype=np.float32)
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
class _Frame:
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

    def smooth(self, draws: _Draws) -> Floats:
        """A smooth random field of unit variance, (N, S, S)."""
        nodes = np.linspace(-1, 1, NODES, dtype=np.float32)
        basis = np.exp(-0.5 * np.square((self.axis[:, None] - nodes) / (1.5 / NODES)))
        basis /= np.sqrt(np.square(basis).sum(axis=1, keepdims=True))
        heights = draws.normal(NODES**2).reshape(-1, NODES, NODES)
        field: Floats = basis @ heights @ basis.T
        return field


def _frame(values: Values, size: int) -> _Frame:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    origin_x, origin_y, angle = (values[n][:, None, None] for n in ("OffsetX", "OffsetY", "Angle"))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = axis[None, None, :] - origin_x, axis[None, :, None] - origin_y
    u, v = cos * x + sin * y, cos * y - sin * x
    return _Frame(axis, cos, sin, origin_x, origin_y, u, v, np.hypot(u, v), np.arctan2(v, u))


class _Outline:
    """The cell's edge: its radius in every direction, by random harmonics around its spread."""

    def __init__(self, spread: Floats, draws: _Draws) -> None:
        self._spread = spread
        self._phase = np.float32(2 * np.pi) * draws.uniform(HARMONICS)
        self._depth = np.float32(0.12) * draws.normal(HARMONICS)
        self._depth /= np.arange(1, HARMONICS + 1, dtype=np.float32)

    def radius(self, angle: Floats) -> Floats:
        """Radius (N, …) in the directions `angle` (N, …), crop half-widths."""
        wide = (slice(None),) + (None,) * (angle.ndim - 1)
        wave = np.ones_like(angle)
        for k in range(HARMONICS):
            wave += self._depth[:, k][wide] * np.cos((k + 1) * angle + self._phase[:, k][wide])
        return np.clip(wave, 0.6, 1.4) * self._spread[wide]


@dataclass(frozen=True)
class _Nucleus:
    inside: Floats
    """(N, S, S) 0 … 1."""
    u: Floats
    """Centre (N, 1, 1) in the cell's frame."""
    v: Floats
    radius: Floats


def _nucleus(values: Values, frame: _Frame, draws: _Draws) -> _Nucleus:
    centre = np.float32(0.04) * draws.normal(2)
    turn, phase, lobes = (draws.uniform(3).T)[:, :, None, None]
    u, v = centre[:, :1, None], centre[:, 1:, None]
    radius = values["NuclearRadius"][:, None, None]
    squash = np.sqrt(np.sqrt(1 - np.square(values["NuclearEccentricity"])))[:, None, None]
    cos, sin = np.cos(np.float32(np.pi) * turn), np.sin(np.float32(np.pi) * turn)
    du, dv = frame.u - u, frame.v - v
    long = (cos * du + sin * dv) * (squash / radius)
    short = (cos * dv - sin * du) / (squash * radius)
    wave = np.cos(np.floor(2 + 3 * lobes) * np.arctan2(short, long) + np.float32(2 * np.pi) * phase)
    edge = 1 + values["NuclearLobes"][:, None, None] * wave - np.hypot(long, short)
    return _Nucleus(_soft_step(edge * radius / EDGE), u, v, radius)


def _actin(values: Values, frame: _Frame, draws: _Draws) -> Floats:
    frequency = values["ActinFrequency"][:, None]
    disorder = 1 - values["ActinOrder"][:, None]
    angle = np.float32(0.3) * draws.normal(1) + disorder * draws.normal(TRAINS)
    return _mesh(frame, angle, frequency, draws)


def _tubulin(values: Values, frame: _Frame, nucleus: _Nucleus, draws: _Draws) -> Floats:
    count: Floats = np.rint(values["TubulinFrequency"])[:, None, None]
    order = values["TubulinOrder"][:, None, None]
    side, phase = np.float32(2 * np.pi) * draws.uniform(2).T[:, :, None, None]
    du = frame.u - nucleus.u - 0.9 * nucleus.radius * np.cos(side)
    dv = frame.v - nucleus.v - 0.9 * nucleus.radius * np.sin(side)
    distance = np.hypot(du, dv)
    rays = _sharp(np.cos(count * np.arctan2(dv, du) + phase + frame.smooth(draws)))
    angle = np.float32(np.pi) * draws.uniform(TRAINS)
    mesh = _mesh(frame, angle, count[:, 0] / np.float32(4), draws)
    density = 0.35 + np.exp(distance / np.float32(-0.35))
    mixed: Floats = order * rays * density + (1 - order) * mesh
    return np.float32(0.8) * mixed


def _mitochondria(
    values: Values, frame: _Frame, nucleus: _Nucleus, outline: _Outline, draws: _Draws
) -> Floats:
    place, direction, turn, rank = np.split(draws.uniform(4 * MITOCHONDRIA), 4, axis=1)
    direction, turn = np.float32(2 * np.pi) * direction, np.float32(np.pi) * turn
    radius = outline.radius(direction) * np.sqrt(0.1 + 0.7 * place)
    jitter = np.float32(0.07) * draws.normal(2 * MITOCHONDRIA).reshape(-1, 2, MITOCHONDRIA)
    gather = np.float32(2 * np.pi) * draws.uniform(CLUMPS)[:, np.arange(MITOCHONDRIA) % CLUMPS]
    reach = nucleus.radius[:, :, 0] + np.float32(0.14)
    clumped = rank < values["MitoClustering"][:, None]
    clump_u = nucleus.u[:, :, 0] + reach * np.cos(gather) + jitter[:, 0]
    clump_v = nucleus.v[:, :, 0] + reach * np.sin(gather) + jitter[:, 1]
    u = np.where(clumped, clump_u, radius * np.cos(direction))
    v = np.where(clumped, clump_v, radius * np.sin(direction))
    size = values["MitoSize"][:, None]
    step = np.array(BEADS, dtype=np.float32)[:, None]
    u = (u[:, None] + step * (size * np.cos(turn))[:, None]).reshape(len(u), -1)
    v = (v[:, None] + step * (size * np.sin(turn))[:, None]).reshape(len(v), -1)
    x = frame.origin_x[:, 0] + frame.cos[:, 0] * u - frame.sin[:, 0] * v
    y = frame.origin_y[:, 0] + frame.sin[:, 0] * u + frame.cos[:, 0] * v
    there = np.clip(values["MitoNumber"][:, None] - np.arange(MITOCHONDRIA, dtype=np.float32), 0, 1)
    weight = np.tile(there, (1, len(BEADS)))[:, :, None]
    across = np.exp(-0.5 * np.square((frame.axis - x[:, :, None]) / size[:, :, None]))
    down = np.exp(-0.5 * np.square((frame.axis - y[:, :, None]) / size[:, :, None]))
    amount = down.swapaxes(1, 2) @ (weight * across)
    merged: Floats = 1 - np.exp(-amount)
    return merged


def _mesh(frame: _Frame, angle: Floats, frequency: Floats, draws: _Draws) -> Floats:
    """Overlapping wave trains across the directions `angle` (N, TRAINS), bent and patchy."""
    bend, density = frame.smooth(draws), frame.smooth(draws)
    phase = np.float32(2 * np.pi) * draws.uniform(TRAINS)[:, :, None, None]
    along_u = (np.float32(2 * np.pi) * frequency * np.cos(angle))[:, :, None, None]
    along_v = (np.float32(2 * np.pi) * frequency * np.sin(angle))[:, :, None, None]
    total = np.zeros_like(frame.u)
    for k in range(TRAINS):
        total += _sharp(
            np.cos(along_u[:, k] * frame.u + along_v[:, k] * frame.v + phase[:, k] + bend)
        )
    total *= np.clip(1 + 0.4 * density, 0.2, 1.8) / TRAINS
    return total


def _sharp(wave: Floats) -> Floats:
    """Narrow ridges 0 … 1 from a wave −1 … 1."""
    ridge: Floats = 0.5 + 0.5 * wave
    return ridge * ridge * ridge


def _soft_step(depth: Floats) -> Floats:
    """0 outside, 1 inside."""
    step: Floats = np.tanh(depth)
    return 0.5 + 0.5 * step
