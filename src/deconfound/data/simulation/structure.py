"""Clean images of cells whose phenotypes lie in structure alone: shape, texture and position.

Each channel of each cell holds the same intensities, whatever the cell's traits: they only lie
elsewhere. No stain but DNA's enters the nucleus, and each gathers by a pattern of its own (none,
two poles, one pole, a distance), so that traits hardly change how the channels correlate; lobes,
filaments and granules are as steep at one end of their trait as at the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Floats
from deconfound.data.simulation.frame import Draws, Frame, Values, frame_of, sharp, soft_step

EXPOSURE = 0.6  # fraction of the full scale that a channel's brightest pixel reaches
BRIGHTNESS = 0.12  # standard deviation of its logarithm from cell to cell
EDGE = 0.05  # half-width of an outline's soft edge, crop half-widths
BODY, NUCLEUS = 0.8, 0.4  # radius of a round cell and of a round nucleus, crop half-widths
HALO = 0.1  # around the nucleus, where no stain lies, crop half-widths
HARMONICS = 3  # of a cell's outline
LOBES, DEPTH = (3, 5), 0.6  # k lobes are DEPTH / k deep, fraction of the radius
COARSE, FINE, BENDS = 7, 19, 9  # nodes a side of smooth fields: chromatin, and bent fibres
TRAINS = 2  # wave trains that overlap in the actin
WAVES = 2.5  # fibres and rings of filaments, per crop half-width
RAYS = 9  # of filaments
MITOCHONDRIA, BEAD = 14, 0.055  # chains, and the half-width of a bead, crop half-widths
BEADS = (-1.4, 0.0, 1.4)  # of a chain, in half-widths
LEVELS = (
    ((0.0, 0.02), (0.875, 0.02), (0.91, 0.45), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.52, 0.18), (0.80, 0.42), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.52, 0.18), (0.80, 0.42), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.60, 0.10), (0.80, 0.30), (1.0, 1.0)),
)
"""Of each channel, points (share of the pixels, the brightness that so many do not exceed)."""
NORMALS = 4 + HARMONICS + 2 + COARSE**2 + FINE**2 + TRAINS + 2 * BENDS**2
UNIFORMS = HARMONICS + 3 + TRAINS + 2 + 3 * MITOCHONDRIA


def render_structure(values: Values, seed: int, cells: Sequence[int], size: int) -> Floats:
    """Images without noise, blur or staining differences: (N, 4, size, size) float32, 0 … 1.

    `values` holds (N,) float32 for every trait of `STRUCTURE_TRAITS` and every pose. The pixels of
    a channel, sorted, are the same for all cells but for a factor; what the traits leave open comes
    from a stream of (seed, cell) alone.
    """
    draws = Draws(seed, cells, NORMALS, UNIFORMS)
    frame = frame_of(values, size)
    brightness = EXPOSURE * np.exp(np.float32(BRIGHTNESS) * draws.normal(len(LEVELS)))
    body = _body(values, frame, draws)
    nucleus = _nucleus(values, frame, draws)
    stained = body.inside * (1 - soft_step((nucleus.depth + HALO) / EDGE))
    stains = [
        nucleus.stain + 0.05 * body.inside,
        stained * _actin(values, frame, body, nucleus, draws),
        stained * _tubulin(values, frame, body, draws),
        stained * (0.02 + _mitochondria(values, frame, draws)),
    ]
    image = _levelled(np.stack(stains, axis=1) + body.glow[:, None])
    image *= brightness[:, :, None, None]
    return np.clip(image, 0, 1, out=image)


@dataclass(frozen=True)
class _Body:
    inside: Floats
    """(N, S, S) 0 … 1."""
    glow: Floats
    """Faint light that orders the pixels outside."""
    reach: Floats
    """Distance from the centre, fraction of the radius in that direction."""
    angle: Floats


def _body(values: Values, frame: Frame, draws: Draws) -> _Body:
    root = np.sqrt(_wide(values["CellElongation"]))
    u, v = frame.u / root, frame.v * root
    angle = np.arctan2(v, u)
    phase = np.float32(2 * np.pi) * draws.uniform(HARMONICS)
    depth = np.float32(0.06) * draws.normal(HARMONICS)
    outline = np.ones_like(u)
    for k in range(HARMONICS):
        outline += _wide(depth[:, k]) * np.cos((k + 2) * angle + _wide(phase[:, k]))
    reach = np.asarray(np.hypot(u, v) / (BODY * outline), dtype=np.float32)
    rim: Floats = (1 - reach) * BODY
    return _Body(soft_step(rim / EDGE), np.float32(0.01) * soft_step(3 * rim), reach, angle)


@dataclass(frozen=True)
class _Nucleus:
    depth: Floats
    """(N, S, S) below the nucleus' edge, crop half-widths."""
    stain: Floats
    turn: Floats
    """(N,) a random number 0 … 1 of the cell."""


def _nucleus(values: Values, frame: Frame, draws: Draws) -> _Nucleus:
    jitter = np.float32(0.03) * draws.normal(2)
    turn, *phases = draws.uniform(1 + len(LOBES)).T
    u = frame.u - _wide(values["NuclearOffset"] + jitter[:, 0])
    v = frame.v - _wide(jitter[:, 1])
    squash = np.sqrt(np.sqrt(1 - np.square(_wide(values["NuclearEccentricity"]))))
    long, short = u * squash / np.float32(NUCLEUS), v / (squash * np.float32(NUCLEUS))
    tip = np.arctan2(short, long)
    many = _wide(values["NuclearLobes"])
    edge = 1 - np.hypot(long, short)
    for share, k, phase in zip((1 - many, many), LOBES, phases, strict=True):
        wave = np.cos(k * tip + np.float32(2 * np.pi) * _wide(phase))
        edge += np.sqrt(share) * np.float32(DEPTH / k) * wave
    depth = np.asarray(edge * NUCLEUS, dtype=np.float32)
    coarse, fine = frame.smooth(draws, COARSE), frame.smooth(draws, FINE)
    grain = _wide(values["ChromatinGrain"])
    chromatin = 1 + np.float32(0.25) * (np.sqrt(grain) * fine + np.sqrt(1 - grain) * coarse)
    return _Nucleus(depth, np.asarray(soft_step(depth / EDGE) * chromatin), turn)


def _actin(values: Values, frame: Frame, body: _Body, nucleus: _Nucleus, draws: Draws) -> Floats:
    """Fibres, parallel or a mesh, at the cell's two ends or at its flanks."""
    disorder = 1 - values["ActinOrder"][:, None]
    heading = np.float32(np.pi) * nucleus.turn[:, None]
    heading = heading + disorder * np.float32(1.2) * draws.normal(TRAINS)
    bend = frame.smooth(draws, BENDS)
    phases = np.float32(2 * np.pi) * draws.uniform(TRAINS)
    fibres = np.zeros_like(frame.u)
    for k in range(TRAINS):
        cos, sin = _wide(np.cos(heading[:, k])), _wide(np.sin(heading[:, k]))
        along = np.float32(2 * np.pi * WAVES) * (cos * frame.u + sin * frame.v)
        fibres += sharp(np.cos(along + _wide(phases[:, k]) + bend))
    poles = 1 + _wide(values["ActinPoles"]) * np.cos(2 * body.angle)
    return np.asarray((np.float32(0.3) + fibres) * poles)


def _tubulin(values: Values, frame: Frame, body: _Body, draws: Draws) -> Floats:
    """Filaments, rays or rings, gathered at one end of the cell or the other."""
    phases = np.float32(2 * np.pi) * draws.uniform(2)
    bend = np.float32(0.7) * frame.smooth(draws, BENDS)
    rays = sharp(np.cos(RAYS * body.angle + _wide(phases[:, 0]) + bend))
    along = np.float32(2 * np.pi * WAVES * BODY) * body.reach
    rings = sharp(np.cos(along + _wide(phases[:, 1]) + bend))
    share = _wide(values["TubulinRays"])
    filaments = share * rays + (1 - share) * rings
    pole = 1 + _wide(values["TubulinPole"]) * np.cos(body.angle)
    return np.asarray((np.float32(0.3) + filaments) * pole)


def _mitochondria(values: Values, frame: Frame, draws: Draws) -> Floats:
    """Short chains of round beads around the nucleus."""
    place, direction, turn = np.split(draws.uniform(3 * MITOCHONDRIA), 3, axis=1)
    direction = np.float32(2 * np.pi) * direction
    root = np.sqrt(values["CellElongation"])[:, None]
    reach = values["MitoPeriphery"][:, None] + np.float32(0.12) * (place - np.float32(0.5))
    reach = np.float32(BODY) * reach
    u, v = root * (reach * np.cos(direction)), reach * np.sin(direction) / root
    across_ray = np.float32(np.pi / 2) * (1 - values["MitoRadial"][:, None])
    heading = np.arctan2(v, u) + across_ray + np.float32(0.6) * (turn - np.float32(0.5))
    step = np.array(BEADS, dtype=np.float32)[:, None] * np.float32(BEAD)
    u = (u[:, None] + step * np.cos(heading)[:, None]).reshape(len(u), -1)
    v = (v[:, None] + step * np.sin(heading)[:, None]).reshape(len(v), -1)
    x = frame.origin_x[:, 0] + frame.cos[:, 0] * u - frame.sin[:, 0] * v
    y = frame.origin_y[:, 0] + frame.sin[:, 0] * u + frame.cos[:, 0] * v
    across = np.exp(-0.5 * np.square((frame.axis - x[:, :, None]) / np.float32(BEAD)))
    down = np.exp(-0.5 * np.square((frame.axis - y[:, :, None]) / np.float32(BEAD)))
    beads: Floats = down.swapaxes(1, 2) @ across
    return beads


def _levelled(stains: Floats) -> Floats:
    """The pixels in their order, with the intensities of `LEVELS`: (N, 4, S, S) float32."""
    flat = stains.reshape(*stains.shape[:2], -1)
    share = (np.arange(flat.shape[2]) + 0.5) / flat.shape[2]
    levels = [np.interp(share, *np.array(points).T) for points in LEVELS]
    image = np.empty(flat.shape, dtype=np.float32)
    order = flat.argsort(axis=2, kind="stable")
    shown = np.broadcast_to(np.array(levels, dtype=np.float32), flat.shape)
    np.put_along_axis(image, order, shown, axis=2)
    return image.reshape(stains.shape)


def _wide(values: Floats) -> Floats:
    """(N,) as (N, 1, 1)."""
    return values[:, None, None]
