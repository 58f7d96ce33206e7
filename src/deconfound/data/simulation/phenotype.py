"""Phenotypes of simulated cells: the traits a perturbation shifts, and each cell's own traits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from deconfound.arrays import Floats
from deconfound.runtime.seeds import numpy_stream

CANDIDATES = 512


@dataclass(frozen=True)
class Trait:
    """One number of a cell that a phenotype moves, always between `low` and `high`."""

    name: str
    low: float
    high: float


TRAITS = (
    Trait("NuclearRadius", 0.18, 0.42),  # crop half-widths
    Trait("NuclearEccentricity", 0.0, 0.95),  # of the ellipse, 0 is a circle
    Trait("NuclearLobes", 0.0, 0.32),  # depth of the lobes, fraction of the radius
    Trait("CellSpread", 0.50, 0.90),  # mean radius of the cell body, crop half-widths
    Trait("ActinOrder", 0.0, 1.0),  # 0 is a mesh, 1 parallel fibres
    Trait("ActinFrequency", 2.5, 6.5),  # fibres per crop half-width
    Trait("TubulinOrder", 0.0, 1.0),  # 0 is a mesh, 1 a radial array
    Trait("TubulinFrequency", 6.0, 24.0),  # filaments around the organising centre
    Trait("MitoNumber", 8.0, 48.0),  # mitochondria
    Trait("MitoSize", 0.02, 0.07),  # half-width of a mitochondrion, crop half-widths
    Trait("MitoClustering", 0.0, 1.0),  # 0 spread through the cytoplasm, 1 in clumps
)

STRUCTURE_TRAITS = (
    Trait("NuclearEccentricity", 0.3, 0.93),  # of the ellipse, along the cell's long axis
    Trait("NuclearLobes", 0.0, 1.0),  # 0 three deep lobes, 1 five shallow ones
    Trait("NuclearOffset", 0.02, 0.2),  # towards one end of the cell, crop half-widths
    Trait("CellElongation", 1.1, 1.45),  # long axis of the cell body over the short one
    Trait("ChromatinGrain", 0.0, 1.0),  # 0 coarse clumps, 1 fine granules
    Trait("ActinOrder", 0.0, 1.0),  # 0 is a mesh, 1 parallel fibres
    Trait("ActinPoles", -0.7, 0.7),  # negative at the cell's flanks, positive at its ends
    Trait("TubulinRays", 0.0, 1.0),  # 0 rings around the centre, 1 rays from it
    Trait("TubulinPole", -0.6, 0.6),  # positive at the end where the nucleus lies
    Trait("MitoRadial", 0.0, 1.0),  # 0 along the cell's edge, 1 towards the nucleus
    Trait("MitoPeriphery", 0.74, 0.9),  # distance from the centre, fraction of the cell's radius
)
"""Of `structure`: shape, texture and position, none of them an intensity; as many as `TRAITS`."""

TRAIT_NAMES = tuple(trait.name for trait in TRAITS)


def draw_phenotypes(labels: int, strength: float, seed: int) -> Floats:
    """Shift of every trait (logits) under every label: (labels, traits) float32.

    Row 0, the control, is zero. Every other label moves half of the traits by ±`strength`; each
    in turn is the candidate farthest from all before it, so that no two labels look alike.
    """
    stream = numpy_stream(seed, "phenotypes")
    moved = (len(TRAITS) + 1) // 2
    chosen = np.zeros((1, len(TRAITS)))
    for _ in range(labels - 1):
        candidates = stream.choice([-1.0, 1.0], (CANDIDATES, len(TRAITS)))
        candidates *= stream.random(candidates.shape).argsort(axis=1) < moved
        distance = np.abs(candidates[:, None] - chosen[None]).sum(axis=2).min(axis=1)
        chosen = np.vstack([chosen, candidates[distance.argmax()]])
    return (strength * chosen).astype(np.float32)


def draw_traits(
    shift: Floats, variation: float, seed: int, traits: Sequence[Trait] = TRAITS
) -> Floats:
    """`traits` of every cell, (N, traits) float32, around its phenotype's `shift` (N, traits).

    On the logit scale a trait is normal around its shift with standard deviation `variation`.
    """
    jitter = numpy_stream(seed, "traits").standard_normal(shift.shape, dtype=np.float32)
    low = np.array([trait.low for trait in traits], dtype=np.float32)
    high = np.array([trait.high for trait in traits], dtype=np.float32)
    level = expit(shift + np.float32(variation) * jitter, dtype=np.float32)
    return low + (high - low) * level
