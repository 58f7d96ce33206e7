"""The phenotypes of a pooled screen: intensities cannot tell them, shape and texture can."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.simulate import COMPLEX_FILE, SimulateConfig, simulate
from deconfound.data.tables.complexes import pairs_among, read_complexes
from deconfound.data.tables.table import coded, joined
from deconfound.methods.post_hoc.standardise import Standardise, StandardiseOptions
from deconfound.metrics.corum import relation_average_precision

Values = npt.NDArray[np.float32]
SIZE = 32
AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) * 2 / SIZE - 1
X, Y = np.broadcast_to(AXIS, (SIZE, SIZE)), np.broadcast_to(AXIS[:, None], (SIZE, SIZE))


def intensities(images: Any) -> Values:
    """The 54 numbers of benchmarks/intensities.py."""
    file = Path(__file__).parents[2] / "benchmarks" / "intensities.py"
    spec = importlib.util.spec_from_file_location("intensities", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Values = module.intensities(images)
    assert found.shape == (len(images), 54)
    return found


def structure(images: Any) -> Values:
    """A dozen measures of shape, texture and position, each free of the scale of intensities."""
    light = images.astype(np.float32)
    light -= np.median(light, axis=(2, 3), keepdims=True)
    light = np.maximum(light, 0)
    light /= light.sum(axis=(2, 3), keepdims=True)
    body = light[:, 1:].mean(axis=1)

    def mean(weight: Any, values: Any) -> Any:
        return (weight * values).sum(axis=(1, 2))

    x, y = mean(body, X)[:, None, None], mean(body, Y)[:, None, None]
    u, v = X - x, Y - y
    nucleus = light[:, 0]
    to_x, to_y = mean(nucleus, u), mean(nucleus, v)
    nu, nv = u - to_x[:, None, None], v - to_y[:, None, None]
    long, cross = mean(nucleus, nu**2 - nv**2), mean(nucleus, 2 * nu * nv)
    spread = mean(nucleus, nu**2 + nv**2)
    axis = np.arctan2(cross, long)[:, None, None]
    turned = np.cos(axis) * (u**2 - v**2) + np.sin(axis) * 2 * u * v
    found = [np.hypot(long, cross) / spread, np.hypot(to_x, to_y)]
    unit_x, unit_y = (one / np.maximum(np.hypot(to_x, to_y), 1e-6) for one in (to_x, to_y))
    for channel in range(1, 4):
        one = light[:, channel]
        dy, dx = np.gradient(one, axis=(1, 2))
        outward = (dx * u + dy * v) / np.maximum(np.hypot(u, v), 1e-6)
        slope = (dx**2 + dy**2).sum(axis=(1, 2))
        xx, xy = (dx**2 - dy**2).sum(axis=(1, 2)), (2 * dx * dy).sum(axis=(1, 2))
        found += [mean(one, turned), mean(one, u) * unit_x + mean(one, v) * unit_y]
        found += [(outward**2).sum(axis=(1, 2)) / slope, np.hypot(xx, xy) / slope]
        found += [mean(one, np.hypot(u, v))]
    return np.stack(found, axis=1).astype(np.float32)


def precision(screen: Screen, values: Values) -> float:
    """Average precision of the complexes, by means over genes, after each well's controls."""
    environment = coded(joined(screen.table, screen.roles.environment)).codes
    control = (screen.table["Metadata_Control_Type"] == "negcon").to_numpy(bool)
    corrected = Standardise(StandardiseOptions()).fit(values, environment, control)
    gene = coded(screen.table["Metadata_Gene"])
    treated = [one for one, name in enumerate(gene.names) if name != "nontargeting"]
    means = np.stack([corrected[gene.codes == one].mean(axis=0) for one in treated])
    names = [gene.names[one] for one in treated]
    means = (means - means.mean(axis=0)) / means.std(axis=0)
    pairs = pairs_among(read_complexes(screen.path / COMPLEX_FILE), names)
    return relation_average_precision(means.astype(np.float32), pairs).value


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Screen]:
    made = {}
    for phenotypes in ("structure", "all"):
        config = SimulateConfig(
            layout="ops", phenotypes=phenotypes, cells=2_000, genes=24, complexes=5, guides=2,
            wells=4, plates=2, size=SIZE, seed=1,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(phenotypes) / "screen"
        made[phenotypes] = simulate(folder, config=config, quiet=True)
    return made


def test_intensities_cannot_tell_the_phenotypes_and_structure_can(
    screens: dict[str, Screen],
) -> None:
    screen = screens["structure"]
    images = screen.read(np.arange(len(screen)))
    read = {"intensities": precision(screen, intensities(images)),
            "structure": precision(screen, structure(images))}  # fmt: skip
    assert read["structure"] > 2 * read["intensities"], read


def test_of_the_former_phenotypes_intensities_tell_most(screens: dict[str, Screen]) -> None:
    screen = screens["all"]
    former = precision(screen, intensities(screen.read(np.arange(len(screen)))))
    screen = screens["structure"]
    now = precision(screen, intensities(screen.read(np.arange(len(screen)))))
    assert former > 2 * now, (former, now)
