"""The same cells in another environment, exactly, where a screen's environments are known."""

from collections.abc import Sequence

import numpy as np

from deconfound.arrays import Images, Rows
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.inject import INJECTED, injected_cells
from deconfound.data.simulation.optics import Optics, no_optics, optics_from
from deconfound.data.simulation.rendering import Renderer, chunks, rendered
from deconfound.data.simulation.simulate import SIMULATE, simulated_cells
from deconfound.errors import UserError

NO_ENVIRONMENT = "none"


def counterfactual(
    screen: Screen,
    rows: Sequence[int] | Rows,
    environment: str | Sequence[str] | Optics,
    *,
    threads: int | None = None,
) -> Images:
    """The same cells, bit for bit the same draws, in another environment: (len(rows), C, H, W).

    `environment` is one of the screen's, as "S1/P2/A1" or ("S1", "P2", "A1"); "none" for no
    technical variation; or any `Optics`, such as `new_environment` draws. A cell's own environment
    returns its stored pixels. An injected screen's clean images are read from the path recorded
    when it was made. Raises UserError if the screen was neither simulated nor injected, has no such
    environment, a row lies outside it, or the clean screen is gone or changed.
    """
    render = _renderer_of(screen)
    optics = environment if isinstance(environment, Optics) else _optics_of(screen, environment)
    wanted = np.asarray(rows, dtype=np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(screen):
        raise UserError(f"{screen.path}: rows outside 0 … {len(screen) - 1}; choose others")
    images = list(rendered(render, chunks(wanted, optics), threads))
    return np.concatenate(images) if images else np.empty((0, *screen.image_shape), screen.dtype)


def new_environment(screen: Screen, name: str) -> Optics:
    """Optics of an environment in a series that the screen lacks, drawn as its own were.

    `name` seeds the draw. Raises UserError if the screen was neither simulated nor injected.
    """
    groups = [f"new {name}", "P1", "A1"][: len(screen.roles.levels)]
    return _renderer_of(screen).draw(groups)


def _renderer_of(screen: Screen) -> Renderer:
    if SIMULATE in screen.provenance:
        return simulated_cells(screen)
    if INJECTED in screen.provenance:
        return injected_cells(screen)
    raise UserError(
        f"{screen.path}: not a simulated screen, nor an injected one, so its cells cannot be "
        "rendered elsewhere; make one with `deconfound simulate`"
    )


def _optics_of(screen: Screen, environment: str | Sequence[str]) -> Optics:
    name = environment if isinstance(environment, str) else "/".join(environment)
    if name == NO_ENVIRONMENT:
        return no_optics(len(screen.channels))
    recorded = screen.provenance["environments"]
    if name not in recorded:
        raise UserError(
            f"{screen.path}: no environment {name!r}; expected {NO_ENVIRONMENT!r} or one of "
            f"{', '.join(recorded)}"
        )
    return optics_from(recorded[name])
