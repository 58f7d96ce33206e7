"""Clean images of cells whose phenotypes lie in structure alone: shape, texture and position.

Each channel of each cell holds the same intensities, and equally steep ones, whatever the cell's
traits: they only lie elsewhere.
"""

from collections.abc import Sequence

import numpy as np

from deconfound.arrays import Floats
from deconfound.data.simulation.frame import Draws, Frame, Values, frame_of, sharp, soft_step

EXPOSURE = 0.6  # fraction of the full scale of a channel's brightest pixel
EDGE = 0.05  # half-width of an outline's soft edge, crop half-widths
BODY, NUCLEUS = 0.8, 0.40  # radius of a round cell and a round nucleus, crop half-widths
HARMONICS = 3  # of a cell's outline
COARSE, FINE = 7, 19  # nodes a side of the fields of chromatin
WAVES = 2.5  # fibres and filaments, per crop half-width
RAYS = 9
SPOTS = 14
SPOT = 0.055  # half-width of a mitochondrion, crop half-widths
DEPTH = 0.6
HALO = 0.1
BEADS = (-1.4, 0.0, 1.4)
NORMALS = COARSE**2 + FINE**2 + 2 * HARMONICS + 2 + 4 + 3 * 81 + 2 * SPOTS + 81
UNIFORMS = 3 + HARMONICS + 3 + 4 + 3 * SPOTS
LEVELS = (
    ((0.0, 0.02), (0.875, 0.02), (0.91, 0.45), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.52, 0.18), (0.80, 0.42), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.52, 0.18), (0.80, 0.42), (1.0, 1.0)),
    ((0.0, 0.02), (0.42, 0.04), (0.60, 0.10), (0.80, 0.30), (1.0, 1.0)),
)
"""Of each channel, points (share of the pixels, the brightness that so many do not exceed)."""


def render_structure(values: Values, seed: int, cells: Sequence[int], size: int) -> Floats:
    draws = Draws(seed, cells, NORMALS, UNIFORMS)
    frame = frame_of(values, size)
    brightness = EXPOSURE * np.exp(0.12 * draws.normal(4))
    image = _levelled(_fields(values, frame, draws))
    image *= brightness[:, :, None, None]
    return np.clip(image, 0, 1, out=image)


def _fields(values: Values, frame: Frame, draws: Draws) -> Floats:
    """What each channel's stain does where, in any unit: (N, 4, S, S)."""
    wide = {name: one[:, None, None] for name, one in values.items()}
    # the body
    root = np.sqrt(wide["CellElongation"])
    u, v = frame.u / root, frame.v * root
    angle = np.arctan2(v, u)
    phase = np.float32(2 * np.pi) * draws.uniform(HARMONICS)
    depth = np.float32(0.06) * draws.normal(HARMONICS)
    outline = np.ones_like(u)
    for k in range(HARMONICS):
        outline += depth[:, k, None, None] * np.cos((k + 2) * angle + phase[:, k, None, None])
    rho = np.hypot(u, v) / (BODY * outline)
    rim = (1 - rho) * BODY
    body = soft_step(rim / EDGE)
    glow = 0.02 / (1 + np.exp(np.clip(-6 * rim, -30, 30)))
    # the nucleus
    jitter = np.float32(0.03) * draws.normal(2)
    turn, lobe_phase, lobes = draws.uniform(3).T[:, :, None, None]
    nu = frame.u - wide["NuclearOffset"] - jitter[:, :1, None]
    nv = frame.v - jitter[:, 1:, None]
    squash = np.sqrt(np.sqrt(1 - np.square(wide["NuclearEccentricity"])))
    long, short = nu * squash / NUCLEUS, nv / (squash * NUCLEUS)
    tip = np.arctan2(short, long)
    few, many = (
        np.cos(k * tip + np.float32(2 * np.pi) * phase) * np.float32(DEPTH / k)
        for k, phase in ((3, lobe_phase), (5, lobes))
    )
    share = wide["NuclearLobes"]
    wave = np.sqrt(1 - share) * few + np.sqrt(share) * many
    edge = (1 + wave - np.hypot(long, short)) * NUCLEUS
    inside = soft_step(edge / EDGE)
    outside = body * (1 - soft_step((edge + HALO) / EDGE))
    # chromatin
    coarse, fine = frame.smooth(draws, COARSE), frame.smooth(draws, FINE)
    share = wide["ChromatinGrain"]
    chromatin = np.sqrt(share) * fine + np.sqrt(1 - share) * coarse
    dna = inside * (1 + 0.25 * chromatin) + 0.05 * body + glow
    # actin
    disorder = 1 - values["ActinOrder"][:, None]
    heading = np.float32(np.pi) * turn[:, 0] + disorder * np.float32(1.2) * draws.normal(2)
    bend = frame.smooth(draws)
    mesh = np.zeros_like(u)
    phases = np.float32(2 * np.pi) * draws.uniform(2)
    for k in range(2):
        along = np.float32(2 * np.pi * WAVES) * (
            np.cos(heading[:, k, None, None]) * frame.u
            + np.sin(heading[:, k, None, None]) * frame.v
        )
        mesh += sharp(np.cos(along + phases[:, k, None, None] + bend))
    actin = outside * (0.3 + mesh) * (1 + wide["ActinPoles"] * np.cos(2 * angle)) + glow
    # tubulin
    start = np.float32(2 * np.pi) * draws.uniform(2)[:, :, None, None]
    bend = 0.7 * frame.smooth(draws)
    rays = sharp(np.cos(RAYS * angle + start[:, 0] + bend))
    rings = sharp(np.cos(np.float32(2 * np.pi * WAVES * BODY) * rho + start[:, 1] + bend))
    part = wide["TubulinRays"]
    filaments = part * rays + (1 - part) * rings
    polar = 1 + wide["TubulinPole"] * np.cos(angle)
    tubulin = outside * (0.3 + filaments) * polar + glow
    # mitochondria
    mito = outside * (0.02 + _mitochondria(values, frame, draws)) + glow
    return np.stack([dna, actin, tubulin, mito], axis=1)


def _mitochondria(values: Values, frame: Frame, draws: Draws) -> Floats:
    """Short chains of round beads around the nucleus, (N, S, S)."""
    place, direction, turn = np.split(draws.uniform(3 * SPOTS), 3, axis=1)
    direction = np.float32(2 * np.pi) * direction
    root = np.sqrt(values["CellElongation"])[:, None]
    reach = BODY * (values["MitoPeriphery"][:, None] + np.float32(0.12) * (place - 0.5))
    u, v = root * (reach * np.cos(direction)), reach * np.sin(direction) / root
    along = np.float32(np.pi / 2) * (1 - values["MitoRadial"][:, None])
    heading = np.arctan2(v, u) + along + np.float32(0.6) * (turn - 0.5)
    step = np.array(BEADS, dtype=np.float32)[:, None] * np.float32(SPOT)
    u = (u[:, None] + step * np.cos(heading)[:, None]).reshape(len(u), -1)
    v = (v[:, None] + step * np.sin(heading)[:, None]).reshape(len(v), -1)
    x = frame.origin_x[:, 0] + frame.cos[:, 0] * u - frame.sin[:, 0] * v
    y = frame.origin_y[:, 0] + frame.sin[:, 0] * u + frame.cos[:, 0] * v
    across = np.exp(-0.5 * np.square((frame.axis - x[:, :, None]) / np.float32(SPOT)))
    down = np.exp(-0.5 * np.square((frame.axis - y[:, :, None]) / np.float32(SPOT)))
    found: Floats = down.swapaxes(1, 2) @ across
    return found


def _levelled(fields: Floats) -> Floats:
    """The fields with the intensities of `LEVELS`, in the same order: (N, 4, S, S)."""
    flat = fields.reshape(*fields.shape[:2], -1)
    share = (np.arange(flat.shape[2]) + 0.5) / flat.shape[2]
    levels = np.stack([np.interp(share, *zip(*one, strict=True)) for one in LEVELS])
    image = np.empty_like(flat)
    order = flat.argsort(axis=2, kind="stable")
    np.put_along_axis(image, order, np.broadcast_to(levels.astype(np.float32), flat.shape), axis=2)
    return image.reshape(fields.shape)
