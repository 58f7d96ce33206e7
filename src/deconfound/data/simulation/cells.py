"""Clean images of simulated cells: nucleus, actin, tubulin and mitochondria from their traits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Floats
from deconfound.data.simulation.frame import Draws, Frame, Values, frame_of, sharp, soft_step
from deconfound.data.simulation.phenotype import TRAITS

CHANNELS = ("DNA", "actin", "tubulin", "mitochondria")

EXPOSURE = 0.45  # fraction of the full scale that a typical bright structure reaches
EDGE = 0.04  # half-width of an outline's soft edge, crop half-widths
HARMONICS = 4  # of a cell's outline
TRAINS = 3  # wave trains that overlap in a mesh of fibres
CLUMPS = 4  # where clustered mitochondria gather
NORMALS, UNIFORMS = 596, 214  # numbers that one cell takes
BEADS = (-1.5, 0.0, 1.5)  # a mitochondrion is a short chain of round beads
MITOCHONDRIA = int(next(trait.high for trait in TRAITS if trait.name == "MitoNumber"))


def render_cells(values: Values, seed: int, cells: Sequence[int], size: int) -> Floats:
    """Images without noise, blur or staining differences: (N, 4, size, size) float32, 0 … 1.

    `values` holds (N,) float32 for every trait and pose; what they leave open (chromatin, fibre
    phases, places of mitochondria) comes from a stream of (seed, cell) alone, so an image depends
    neither on the other cells nor on their order.
    """
    draws = Draws(seed, cells, NORMALS, UNIFORMS)
    frame = frame_of(values, size)
    outline = _Outline(values["CellSpread"], draws)
    nucleus = _nucleus(values, frame, draws)
    rim = outline.radius(frame.angle) - frame.radius
    body = np.maximum(soft_step(rim / EDGE), nucleus.inside)
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


class _Outline:
    """The cell's edge: its radius in every direction, by random harmonics around its spread."""

    def __init__(self, spread: Floats, draws: Draws) -> None:
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


def _nucleus(values: Values, frame: Frame, draws: Draws) -> _Nucleus:
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
    return _Nucleus(soft_step(edge * radius / EDGE), u, v, radius)


def _actin(values: Values, frame: Frame, draws: Draws) -> Floats:
    frequency = values["ActinFrequency"][:, None]
    disorder = 1 - values["ActinOrder"][:, None]
    angle = np.float32(0.3) * draws.normal(1) + disorder * draws.normal(TRAINS)
    return _mesh(frame, angle, frequency, draws)


def _tubulin(values: Values, frame: Frame, nucleus: _Nucleus, draws: Draws) -> Floats:
    count: Floats = np.rint(values["TubulinFrequency"])[:, None, None]
    order = values["TubulinOrder"][:, None, None]
    side, phase = np.float32(2 * np.pi) * draws.uniform(2).T[:, :, None, None]
    du = frame.u - nucleus.u - 0.9 * nucleus.radius * np.cos(side)
    dv = frame.v - nucleus.v - 0.9 * nucleus.radius * np.sin(side)
    distance = np.hypot(du, dv)
    rays = sharp(np.cos(count * np.arctan2(dv, du) + phase + frame.smooth(draws)))
    angle = np.float32(np.pi) * draws.uniform(TRAINS)
    mesh = _mesh(frame, angle, count[:, 0] / np.float32(4), draws)
    density = 0.35 + np.exp(distance / np.float32(-0.35))
    mixed: Floats = order * rays * density + (1 - order) * mesh
    return np.float32(0.8) * mixed


def _mitochondria(
    values: Values, frame: Frame, nucleus: _Nucleus, outline: _Outline, draws: Draws
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


def _mesh(frame: Frame, angle: Floats, frequency: Floats, draws: Draws) -> Floats:
    """Overlapping wave trains across the directions `angle` (N, TRAINS), bent and patchy."""
    bend, density = frame.smooth(draws), frame.smooth(draws)
    phase = np.float32(2 * np.pi) * draws.uniform(TRAINS)[:, :, None, None]
    along_u = (np.float32(2 * np.pi) * frequency * np.cos(angle))[:, :, None, None]
    along_v = (np.float32(2 * np.pi) * frequency * np.sin(angle))[:, :, None, None]
    total = np.zeros_like(frame.u)
    for k in range(TRAINS):
        total += sharp(
            np.cos(along_u[:, k] * frame.u + along_v[:, k] * frame.v + phase[:, k] + bend)
        )
    total *= np.clip(1 + 0.4 * density, 0.2, 1.8) / TRAINS
    return total
