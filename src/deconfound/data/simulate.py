"""Simulated screens: planted phenotypes under nested technical effects, exact counterfactuals."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deconfound.atomic import refuse_existing
from deconfound.config import validated
from deconfound.data.cells import CHANNELS, POSE, Values, draw_pose, render_cells
from deconfound.data.layout import LABEL, PLATE, SECTION, SERIES, WELL, grid_layout, lincs_layout
from deconfound.data.ops_layout import (
    GENE,
    NONTARGETING,
    SPLIT,
    complex_lines,
    draw_library,
    pooled_cells,
)
from deconfound.data.optics import (
    Optics,
    apply_optics,
    digitised,
    draw_optics,
    no_optics,
    optics_from,
)
from deconfound.data.phenotype import TRAIT_NAMES, Floats, draw_phenotypes, draw_traits
from deconfound.data.screen import Images, Rows, Screen, open_screen
from deconfound.data.screen_writer import ScreenWriter
from deconfound.data.simulate_config import SimulateConfig as SimulateConfig
from deconfound.data.table import Roles, joined
from deconfound.errors import UserError
from deconfound.progress import Progress
from deconfound.streams import numpy_stream

PERTURBATION, CONTROL_TYPE = "Metadata_Perturbation", "Metadata_Control_Type"
SITE, OBJECT = "Metadata_Site", "Metadata_ObjectNumber"
CELL = "Truth_Cell"
NO_ENVIRONMENT = "none"
COMPLEX_FILE = "complexes.tsv"
SITES = 4  # fields of view in a well
CHUNK = 128  # cells rendered at a time


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
    config = (config or SimulateConfig()).complete()
    refuse_existing(Path(out))
    plan = _pooled(config) if config.layout == "ops" else _arrayed(config)
    table = _with_cells(plan.table, plan.shift, config)
    identities = joined(table, plan.roles.levels)
    environments = {
        identity: _draw(identity.split("/"), config) for identity in identities.unique().tolist()
    }
    provenance = {
        "made_by": f"deconfound simulate {version('deconfound')}",
        "simulate": config.model_dump(mode="json"),
        "phenotypes": {
            name: dict(zip(TRAIT_NAMES, shift.tolist(), strict=True))
            for name, shift in zip(plan.labels, plan.phenotypes, strict=True)
        },
        "environments": {name: optics.as_dict() for name, optics in environments.items()},
    }
    work = [
        (rows[start : start + CHUNK], environments[identity])
        for identity, rows in _runs(identities)
        for start in range(0, len(rows), CHUNK)
    ]
    with (
        ScreenWriter(Path(out), Path(out).name, CHANNELS, plan.roles, provenance) as writer,
        Progress("simulate", len(table), "cells", quiet=quiet) as progress,
    ):
        if plan.complexes is not None:
            (writer.kept / COMPLEX_FILE).write_text(plan.complexes, encoding="utf-8")
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


class _Plan(NamedTuple):
    """Which cells there are, environment after environment, and what is done to them."""

    table: pd.DataFrame
    shift: Floats
    """(N, traits) of each cell, in logits."""
    labels: Sequence[str]
    phenotypes: Floats
    """(labels, traits)."""
    roles: Roles
    complexes: str | None = None
    """The complex file of a pooled screen."""


def _arrayed(config: SimulateConfig) -> _Plan:
    """One label a well, well after well."""
    assert config.labels and config.plates and config.wells
    labels, series, plates, wells = config.labels, config.series, config.plates, config.wells
    if config.layout == "grid":
        places = grid_layout(labels, series, plates, config.sections, wells, config.seed)
    else:
        places = lincs_layout(labels, series, config.maps, plates, wells, config.seed)
    cells, count = config.cells, len(places)
    if cells < count:
        raise UserError(f"{cells} cells for {count} wells; raise --cells or lower --wells")
    phenotypes = draw_phenotypes(labels, config.strength, config.seed)
    owner = np.arange(cells) * count // cells
    label = places[LABEL].to_numpy()[owner]
    names = _label_names(labels)
    table = places.drop(columns=LABEL).iloc[owner].reset_index(drop=True)
    table[PERTURBATION] = np.array(names)[label]
    table[CONTROL_TYPE] = np.where(label == 0, "negcon", "treatment")
    levels = tuple(c for c in (SERIES, PLATE, SECTION) if c in places)
    roles = Roles(label=PERTURBATION, environment=levels, levels=levels, well=WELL)
    return _Plan(table, phenotypes[label], names, phenotypes, roles)


def _pooled(config: SimulateConfig) -> _Plan:
    """Every gene in every well, well after well; the well is the environment."""
    assert config.plates and config.wells
    library = draw_library(
        config.genes, config.complexes, config.guides, config.strength, config.seed
    )
    table, shift = pooled_cells(library, config.cells, config.wells, config.plates, config.seed)
    table[CONTROL_TYPE] = np.where(table[GENE] == NONTARGETING, "negcon", "treatment")
    levels = (PLATE, WELL)
    roles = Roles(label=GENE, environment=levels, levels=levels, well=WELL, split=SPLIT)
    lines = complex_lines(library.complexes)
    return _Plan(table, shift, library.genes, library.shift, roles, lines)


def _with_cells(table: pd.DataFrame, shift: Floats, config: SimulateConfig) -> pd.DataFrame:
    """The table with each cell's place in its well, its traits and its pose."""
    cells = len(table)
    place = [c for c in (SERIES, PLATE, SECTION, WELL) if c in table]
    within = table.groupby(place, sort=False).cumcount().to_numpy()
    behind = list(table).index(WELL) + 1
    table.insert(behind, SITE, (within % SITES + 1).astype(str))
    table.insert(behind + 1, OBJECT, (within // SITES + 1).astype(str))
    table[CELL] = np.arange(cells, dtype=np.int64)
    for name, values in zip(
        TRAIT_NAMES, draw_traits(shift, config.variation, config.seed).T, strict=True
    ):
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
    spread = config.spread()[: len(environment)]
    return draw_optics(environment, spread, len(CHANNELS), config.technical, config.seed)


def _config_of(screen: Screen) -> SimulateConfig:
    if "simulate" not in screen.provenance:
        raise UserError(
            f"{screen.path}: not a simulated screen, so its cells cannot be rendered elsewhere; "
            "make one with `deconfound simulate`"
        )
    recorded = screen.provenance["simulate"]
    return validated(SimulateConfig, recorded, f"{screen.path}/screen.json").complete()


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
