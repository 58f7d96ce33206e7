"""Simulated screens: planted phenotypes under nested technical effects, exact counterfactuals."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deconfound.atomic import refuse_existing
from deconfound.config import Options, validated
from deconfound.data.cells import CHANNELS, POSE, Values, draw_pose, render_cells
from deconfound.data.layout import LABEL, PLATE, SECTION, SERIES, WELL, grid_layout, lincs_layout
from deconfound.data.optics import (
    Optics,
    apply_optics,
    digitised,
    draw_optics,
    no_optics,
    optics_from,
)
from deconfound.data.phenotype import TRAIT_NAMES, draw_phenotypes, draw_traits
from deconfound.data.screen import Images, Rows, Screen, open_screen
from deconfound.data.screen_writer import ScreenWriter
from deconfound.data.table import Roles, joined
from deconfound.errors import UserError
from deconfound.progress import Progress
from deconfound.streams import numpy_stream

PERTURBATION, CONTROL_TYPE = "Metadata_Perturbation", "Metadata_Control_Type"
SITE, OBJECT = "Metadata_Site", "Metadata_ObjectNumber"
CELL = "Truth_Cell"
NO_ENVIRONMENT = "none"
SITES = 4  # fields of view in a well
CHUNK = 128  # cells rendered at a time


class SimulateConfig(Options):
    """A simulated screen; the defaults are those every comparison in the documentation uses."""

    layout: Literal["grid", "lincs"] = "grid"
    """grid: sections in plates in series, conditions only partly shared. lincs: plate maps with
    exclusive treatments and shared controls, one full series and several partial ones."""
    cells: int = Field(12_000, ge=1)
    """Cells, dealt evenly to the wells."""
    labels: int | None = Field(None, ge=2)
    """Labels, the control among them; 9 (grid) or 13 (lincs) if not given."""
    series: int = Field(4, ge=2)
    """Series, the outermost level."""
    plates: int = Field(2, ge=1)
    """Plates of a series (grid), or replicate plates of a map in a partial series (lincs)."""
    sections: int = Field(2, ge=1)
    """Sections of a plate (grid only)."""
    maps: int = Field(6, ge=1)
    """Plate maps (lincs only)."""
    wells: int = Field(2, ge=1)
    """Wells of a label in a section (grid) or on a plate (lincs)."""
    size: int = Field(48, ge=24, le=512)
    """Height and width of an image in pixels; the cells fill it at any size."""
    dtype: Literal["uint8", "uint16"] = "uint8"
    """Pixel type; its largest value is the camera's full scale."""
    strength: float = Field(1.5, ge=0)
    """How far a phenotype moves a trait, in logits of the trait's range."""
    variation: float = Field(0.5, ge=0)
    """Standard deviation of a trait from cell to cell, in logits of its range."""
    technical: float = Field(1.0, ge=0, le=1.5)
    """Scale of all staining and optics; 0 leaves clean images."""
    series_spread: float = Field(1.0, ge=0)
    """Standard deviation of the technical draws from series to series."""
    plate_spread: float = Field(0.4, ge=0)
    """The same from plate to plate of a series."""
    section_spread: float = Field(0.2, ge=0)
    """The same from section to section of a plate (grid only)."""
    seed: int = 0
    """Seed of everything; the same seed gives the same bits on the same kind of processor."""


def simulate(
    out: Path,
    *,
    config: SimulateConfig | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Screen:
    """Write a simulated screen at `out` and open it: (N, 4, size, size) images of `CHANNELS`.

    The table has the field's metadata columns and `Truth_` columns with every trait and pose of
    each cell; the provenance records each label's shifts and each environment's `Optics`. The
    images do not depend on `threads` (all cores if not given). Raises UserError if `out` exists,
    if there are fewer cells than wells, or if the layout cannot hold the labels.
    """
    config = config or SimulateConfig()
    refuse_existing(Path(out))
    labels = config.labels or {"grid": 9, "lincs": 13}[config.layout]
    wells = _wells(config, labels)
    levels = tuple(c for c in (SERIES, PLATE, SECTION) if c in wells)
    phenotypes = draw_phenotypes(labels, config.strength, config.seed)
    table = _cell_table(wells, phenotypes, config)
    identities = joined(table, levels)
    environments = {
        identity: _draw(identity.split("/"), config) for identity in identities.unique().tolist()
    }
    provenance = {
        "made_by": f"deconfound simulate {version('deconfound')}",
        "simulate": config.model_dump(mode="json"),
        "phenotypes": {
            name: dict(zip(TRAIT_NAMES, shift.tolist(), strict=True))
            for name, shift in zip(_label_names(labels), phenotypes, strict=True)
        },
        "environments": {name: optics.as_dict() for name, optics in environments.items()},
    }
    roles = Roles(label=PERTURBATION, environment=levels, levels=levels, well=WELL)
    work = [
        (rows[start : start + CHUNK], environments[identity])
        for identity, rows in _runs(identities)
        for start in range(0, len(rows), CHUNK)
    ]
    with (
        ScreenWriter(Path(out), Path(out).name, CHANNELS, roles, provenance) as writer,
        Progress("simulate", len(table), "cells", quiet=quiet) as progress,
    ):
        for images in _rendered(_Renderer(table, config), work, threads):
            writer.append(images)
            progress.update(len(images))
        writer.finish(table)
    return open_screen(Path(out))


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
    returns its stored pixels. Raises UserError if the screen was not simulated, has no such
    environment, or a row lies outside it.
    """
    config = _config_of(screen)
    optics = environment if isinstance(environment, Optics) else _optics_of(screen, environment)
    wanted = np.asarray(rows, dtype=np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(screen):
        raise UserError(f"{screen.path}: rows outside 0 … {len(screen) - 1}; choose others")
    work = [(wanted[start : start + CHUNK], optics) for start in range(0, len(wanted), CHUNK)]
    chunks = list(_rendered(_Renderer(screen.table, config), work, threads))
    return np.concatenate(chunks) if chunks else np.empty((0, *screen.image_shape), screen.dtype)


def new_environment(screen: Screen, name: str) -> Optics:
    """Optics of an environment in a series that the screen lacks, drawn as its own were.

    `name` seeds the draw. Raises UserError if the screen was not simulated.
    """
    config = _config_of(screen)
    return _draw([f"new {name}", "P1", "A1"][: len(screen.roles.levels)], config)


@dataclass(frozen=True)
class _Renderer:
    """Renders cells of a table; everything random comes from (seed, cell)."""

    table: pd.DataFrame
    config: SimulateConfig

    def __call__(self, rows: Rows, optics: Optics) -> Images:
        chosen = self.table.iloc[rows]
        cells = chosen[CELL].tolist()
        values: Values = {
            name: chosen[f"Truth_{name}"].to_numpy(dtype=np.float32)
            for name in (*TRAIT_NAMES, *POSE)
        }
        clean = render_cells(values, self.config.seed, cells, self.config.size)
        noise = np.empty_like(clean)
        for cell, one in zip(cells, noise, strict=True):
            numpy_stream(self.config.seed, "noise", cell).standard_normal(out=one, dtype=np.float32)
        field = np.stack([values["FieldX"], values["FieldY"]], axis=1)
        return digitised(apply_optics(clean, optics, field, noise), self.config.dtype)


def _rendered(
    render: _Renderer, work: Iterable[tuple[Rows, Optics]], threads: int | None
) -> Iterator[Images]:
    """The images of every piece of work, in order, few ahead; one BLAS thread fixes the bits."""
    threads = threads or os.cpu_count() or 1
    ahead: deque[Future[Images]] = deque()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for rows, optics in work:
            ahead.append(pool.submit(render, rows, optics))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _wells(config: SimulateConfig, labels: int) -> pd.DataFrame:
    match config.layout:
        case "grid":
            wells = grid_layout(
                labels, config.series, config.plates, config.sections, config.wells, config.seed
            )
        case "lincs":
            wells = lincs_layout(
                labels, config.series, config.maps, config.plates, config.wells, config.seed
            )
    if config.cells < len(wells):
        raise UserError(
            f"{config.cells} cells for {len(wells)} wells; raise --cells or lower --wells"
        )
    return wells


def _cell_table(wells: pd.DataFrame, phenotypes: Any, config: SimulateConfig) -> pd.DataFrame:
    """One row per cell, well after well."""
    cells, count = config.cells, len(wells)
    owner = np.arange(cells) * count // cells
    within = np.arange(cells) - np.searchsorted(owner, owner)
    label = wells[LABEL].to_numpy()[owner]
    names = np.array(_label_names(len(phenotypes)))
    table = wells.drop(columns=LABEL).iloc[owner].reset_index(drop=True)
    table[SITE] = (within % SITES + 1).astype(str)
    table[OBJECT] = (within // SITES + 1).astype(str)
    table[PERTURBATION] = names[label]
    table[CONTROL_TYPE] = np.where(label == 0, "negcon", "treatment")
    table[CELL] = np.arange(cells, dtype=np.int64)
    traits = draw_traits(phenotypes[label], config.variation, config.seed)
    for name, values in zip(TRAIT_NAMES, traits.T, strict=True):
        table[f"Truth_{name}"] = values
    for name, values in draw_pose(cells, config.seed).items():
        table[f"Truth_{name}"] = values
    return table


def _label_names(labels: int) -> list[str]:
    width = len(str(labels - 1))
    return ["control", *(f"treatment-{k:0{width}d}" for k in range(1, labels))]


def _runs(identities: pd.Series) -> Iterator[tuple[str, Rows]]:
    """Consecutive rows of one environment, in the table's order."""
    changes = np.flatnonzero(identities.ne(identities.shift(fill_value="")).to_numpy(dtype=bool))
    for start, end in zip(changes, [*changes[1:], len(identities)], strict=True):
        yield str(identities.iloc[start]), np.arange(start, end, dtype=np.int64)


def _draw(environment: Sequence[str], config: SimulateConfig) -> Optics:
    spread = (config.series_spread, config.plate_spread, config.section_spread)
    return draw_optics(
        environment, spread[: len(environment)], len(CHANNELS), config.technical, config.seed
    )


def _config_of(screen: Screen) -> SimulateConfig:
    if "simulate" not in screen.provenance:
        raise UserError(
            f"{screen.path}: not a simulated screen, so its cells cannot be rendered elsewhere; "
            "make one with `deconfound simulate`"
        )
    return validated(SimulateConfig, screen.provenance["simulate"], f"{screen.path}/screen.json")


def _optics_of(screen: Screen, environment: str | Sequence[str]) -> Optics:
    name = environment if isinstance(environment, str) else "/".join(environment)
    if name == NO_ENVIRONMENT:
        return no_optics(len(CHANNELS))
    recorded = screen.provenance["environments"]
    if name not in recorded:
        raise UserError(
            f"{screen.path}: no environment {name!r}; expected {NO_ENVIRONMENT!r} or one of "
            f"{', '.join(recorded)}"
        )
    return optics_from(recorded[name])
