"""Cells whose phenotypes are structure alone: what their traits show, and what they leave alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.frame import POSE
from deconfound.data.simulation.phenotype import STRUCTURE_TRAITS, TRAITS
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.data.simulation.structure import LEVELS, render_structure
from deconfound.errors import UserError

TINY = {
    "layout": "ops", "cells": 120, "genes": 8, "complexes": 2, "guides": 2, "wells": 4,
    "plates": 2, "size": 24,
}  # fmt: skip
SIZE = 48
AXIS = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1


def tiny(out: Path, **options: Any) -> Screen:
    return simulate(out, config=SimulateConfig.model_validate(TINY | options), quiet=True)


def values(cells: int, **changed: float) -> dict[str, Any]:
    middle = {trait.name: (trait.low + trait.high) / 2 for trait in STRUCTURE_TRAITS}
    centred = middle | dict.fromkeys(POSE, 0.0) | changed
    return {name: np.full(cells, value, dtype=np.float32) for name, value in centred.items()}


def rendered(cells: int = 32, **changed: float) -> Any:
    return render_structure(values(cells, **changed), 0, range(cells), SIZE)


def eccentricity(image: Any) -> float:
    """Long over short axis of the bright pixels' second moments, (N, S, S)."""
    shares = []
    for mask in image > 0.5 * image.max(axis=(1, 2), keepdims=True):
        y, x = np.nonzero(mask)
        low, high = np.linalg.eigvalsh(np.cov(x, y))
        shares.append(np.sqrt(high / low))
    return float(np.mean(shares))


def fineness(image: Any) -> float:
    power = np.abs(np.fft.fft2(image)) ** 2
    power[:, 0, 0] = 0
    step = np.fft.fftfreq(image.shape[-1])
    return float((power * np.hypot(step[:, None], step)).sum() / power.sum())


def anisotropy(image: Any) -> float:
    dy, dx = np.gradient(image, axis=(1, 2))
    xx, yy, xy = ((a * b).sum(axis=(1, 2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    return float((np.hypot(xx - yy, 2 * xy) / (xx + yy)).mean())


def radial_slope(image: Any) -> float:
    """Share of the squared gradient that points to or from the centre, outside the nucleus."""
    dy, dx = np.gradient(image, axis=(1, 2))
    radius = np.hypot(AXIS[:, None], AXIS)
    along = (dx * AXIS + dy * AXIS[:, None]) / radius
    ring = (radius > 0.5) & (radius < 0.7)
    return float(np.square(along[:, ring]).sum() / (np.square(dx) + np.square(dy))[:, ring].sum())


def weighted(image: Any, weight: Any) -> float:
    return float((image * weight).sum() / image.sum())


ALONG = np.broadcast_to(AXIS, (SIZE, SIZE))
ENDS = ALONG**2 - (ALONG.T) ** 2
RADIUS = np.hypot(AXIS[:, None], AXIS)


@pytest.mark.parametrize(
    ("trait", "measure"),
    [
        ("NuclearEccentricity", lambda image: eccentricity(image[:, 0])),
        ("NuclearOffset", lambda image: weighted(image[:, 0] > 0.2, ALONG)),
        ("CellElongation", lambda image: eccentricity(image[:, 1] > 0.04)),
        ("ChromatinGrain", lambda image: fineness(image[:, 0])),
        ("ActinOrder", lambda image: anisotropy(image[:, 1])),
        ("ActinPoles", lambda image: weighted(image[:, 1], ENDS)),
        ("TubulinRays", lambda image: -radial_slope(image[:, 2])),
        ("TubulinPole", lambda image: weighted(image[:, 2], ALONG)),
        ("MitoRadial", lambda image: -radial_slope(image[:, 3])),
        ("MitoPeriphery", lambda image: weighted(image[:, 3], RADIUS)),
    ],
)
def test_a_trait_shows_in_its_channel(trait: str, measure: Any) -> None:
    low, high = next((one.low, one.high) for one in STRUCTURE_TRAITS if one.name == trait)
    measured = [measure(rendered(**{trait: value})) for value in (low, (low + high) / 2, high)]
    assert (np.diff(measured) > 0).all(), measured


def test_lobes_are_few_or_many() -> None:
    angle = np.arctan2(AXIS[:, None], AXIS)
    nuclei = [rendered(NuclearLobes=many, NuclearEccentricity=0.3, NuclearOffset=0.02)[:, 0]
              for many in (0.0, 1.0)]  # fmt: skip

    def waves(image: Any, k: int) -> float:
        return float(np.abs((image * np.exp(1j * k * angle)).sum(axis=(1, 2))).mean())

    few, many = nuclei
    assert waves(few, 3) > waves(many, 3)
    assert waves(many, 5) > waves(few, 5)


def test_every_channel_of_every_cell_holds_the_same_intensities() -> None:
    stream = np.random.default_rng(0)
    drawn = values(40)
    for trait in STRUCTURE_TRAITS:
        drawn[trait.name] = stream.uniform(trait.low, trait.high, 40).astype(np.float32)
    drawn["Angle"] = stream.uniform(0, 6, 40).astype(np.float32)
    image = render_structure(drawn, 0, range(40), SIZE)
    assert image.shape == (40, len(LEVELS), SIZE, SIZE)
    assert image.dtype == np.float32
    ordered = np.sort(image.reshape(40, len(LEVELS), -1), axis=2)
    ordered = ordered / ordered.mean(axis=2, keepdims=True)
    for one in ordered[1:]:
        np.testing.assert_allclose(one, ordered[0], rtol=1e-4)


def test_a_cell_is_the_same_whatever_its_companions() -> None:
    together = rendered(8)
    np.testing.assert_array_equal(render_structure(values(1), 0, [5], SIZE)[0], together[5])
    assert not np.array_equal(together[4], together[5])


def test_every_cell_draws_all_its_numbers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from deconfound.data.simulation import frame, structure

    kept = []

    class Kept(frame.Draws):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append(self)

    monkeypatch.setattr(structure, "Draws", Kept)
    rendered(2)
    assert kept[0].normal(0).shape == kept[0].uniform(0).shape == (2, 0)
    assert kept[0]._normal.shape[1] == kept[0]._uniform.shape[1] == 0


def test_the_phenotypes_of_a_pool_are_structure_unless_others_are_asked_for(tmp_path: Path) -> None:
    names = [f"Truth_{trait.name}" for trait in STRUCTURE_TRAITS]
    screen = tiny(tmp_path / "screen")
    assert set(names) <= set(screen.table)
    assert screen.provenance["simulate"]["phenotypes"] == "structure"
    assert list(screen.provenance["phenotypes"]["GENE1"]) == [t.name for t in STRUCTURE_TRAITS]
    other = tiny(tmp_path / "other", phenotypes="all")
    assert {f"Truth_{trait.name}" for trait in TRAITS} <= set(other.table)
    assert len(TRAITS) == len(STRUCTURE_TRAITS)
    well = "P1/A01"
    rows = np.flatnonzero(
        screen.table["Metadata_Plate"] + "/" + screen.table["Metadata_Well"] == well
    )
    np.testing.assert_array_equal(counterfactual(screen, rows, well), screen.read(rows))


def test_a_pool_of_an_earlier_build_is_rendered_as_it_was_drawn(tmp_path: Path) -> None:
    tiny(tmp_path / "screen", phenotypes="all")
    file = tmp_path / "screen" / "screen.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    for name in ("phenotypes", "label_overlap", "position_effect"):
        del index["provenance"]["simulate"][name]
    index["sha256"] = ""
    file.write_text(json.dumps(index), encoding="utf-8")
    screen = open_screen(tmp_path / "screen")
    place = screen.table["Metadata_Plate"] + "/" + screen.table["Metadata_Well"]
    rows = np.flatnonzero(place == "P2/A02")
    np.testing.assert_array_equal(counterfactual(screen, rows, "P2/A02"), screen.read(rows))


def test_a_grid_may_have_them_too(tmp_path: Path) -> None:
    screen = simulate(
        tmp_path / "screen",
        config=SimulateConfig(cells=200, labels=3, series=2, size=24, phenotypes="structure"),
        quiet=True,
    )
    assert "Truth_ActinPoles" in screen.table
    with pytest.raises(UserError, match="no environment"):
        counterfactual(screen, [0], "S9/P1/A1")
