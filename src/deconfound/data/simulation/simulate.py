"""Simulated screens: planted phenotypes under nested technical effects, exact counterfactuals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import Field

from deconfound.arrays import Floats, Images, Rows
from deconfound.config import validated
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation import layout
from deconfound.data.simulation.cells import CHANNELS, render_cells
from deconfound.data.simulation.frame import POSE, Values, draw_pose
from deconfound.data.simulation.optics import (
    EnvironmentOptions,
    Optics,
    apply_optics,
    digitised,
    draw_optics,
)
from deconfound.data.simulation.phenotype import (
    STRUCTURE_TRAITS,
    TRAITS,
    Trait,
    draw_phenotypes,
    draw_traits,
)
from deconfound.data.simulation.position import at_place, well_places, with_position
from deconfound.data.simulation.rendering import render_screen
from deconfound.data.simulation.structure import render_structure
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.runtime.seeds import numpy_stream
from deconfound.version import __version__

PERTURBATION = "Metadata_Perturbation"
SIMULATE = "simulate"
"""Entry of the provenance that a simulated screen has and no other."""
COMPLEX_FILE = "complexes.tsv"
DEFAULTS: dict[str, dict[str, Any]] = {
    "grid": {"labels": 9, "plates": 2, "wells": 2, "plate_spread": 0.4, "phenotypes": "all"},
    "lincs": {"labels": 13, "plates": 2, "wells": 2, "plate_spread": 0.4, "phenotypes": "all"},
    "ops": {"plates": 6, "wells": 34, "plate_spread": 0.8, "phenotypes": "structure"},
}
"""Options that each layout takes by itself."""


class SimulateConfig(EnvironmentOptions):
    """A simulated screen; the defaults are those every comparison in the documentation uses."""

    layout: Literal["grid", "lincs", "ops"] = "grid"
    """grid: sections in plates in series, conditions only partly shared. lincs: plate maps with
    exclusive treatments and shared controls, one full series and several partial ones. ops: an
    optical pooled screen, every gene in every well, genes grouped in complexes."""
    cells: int = Field(12_000, ge=1)
    """Cells, dealt evenly to the wells."""
    labels: int | None = Field(None, ge=2)
    """Labels, the control among them; 9 (grid) or 13 (lincs) if not given."""
    plates: int | None = Field(None, ge=1)
    """Plates of a series (grid), replicate plates of a map in a partial series (lincs), or plates
    of the screen (ops); 2, or 6 (ops), if not given."""
    wells: int | None = Field(None, ge=1)
    """Wells of a label in a section (grid) or on a plate (lincs), or of the screen (ops); 2, or 34
    (ops), if not given."""
    genes: int = Field(200, ge=1)
    """Genes, besides the non-targeting controls (ops only)."""
    complexes: int = Field(30, ge=0)
    """Complexes, which hold three genes in four between them (ops only)."""
    guides: int = Field(4, ge=1)
    """Guides of a gene (ops only)."""
    size: int = Field(48, ge=24, le=512)
    """Height and width of an image in pixels; the cells fill it at any size."""
    dtype: Literal["uint8", "uint16"] = "uint8"
    """Pixel type; its largest value is the camera's full scale."""
    phenotypes: Literal["all", "structure"] | None = None
    """all: sizes, numbers and order of what a cell holds, and so its intensities. structure:
    shape, texture and position alone, at the same intensities in every channel of every cell;
    ops if not given, the other layouts all."""
    strength: float = Field(1.5, ge=0)
    """How far a phenotype moves a trait, in logits of the trait's range; in ops the strongest."""
    variation: float = Field(0.5, ge=0)
    """Standard deviation of a trait from cell to cell, in logits of its range."""
    plate_spread: float | None = Field(None, ge=0)
    """Standard deviation of the technical draws from plate to plate; 0.4, or 0.8 (ops), if not
    given."""
    well_spread: float = Field(0.4, ge=0)
    """The same from well to well of a plate (ops only)."""

    def complete(self) -> Self:
        """A copy with the layout's defaults for options that are not given.

        Raises UserError for labels in a pooled screen, and for a label overlap outside the grid.
        """
        if self.layout == "ops" and self.labels is not None:
            raise UserError("--labels with --layout ops, whose labels are genes; give --genes")
        if self.layout != "grid" and self.label_overlap is not None:
            raise UserError(f"--label-overlap with --layout {self.layout}; it is of the grid alone")
        missing = {k: v for k, v in DEFAULTS[self.layout].items() if getattr(self, k) is None}
        return self.model_copy(update=missing)

    def traits(self) -> tuple[Trait, ...]:
        """The traits that a phenotype moves."""
        return STRUCTURE_TRAITS if self.phenotypes == "structure" else TRAITS

    def trait_names(self) -> tuple[str, ...]:
        """The names of `traits`."""
        return tuple(trait.name for trait in self.traits())

    def spread(self) -> tuple[float, ...]:
        """Standard deviation of the technical draws at each level, outermost first."""
        plate = self.plate_spread or 0.0
        if self.layout == "ops":
            return plate, self.well_spread
        return self.series_spread, plate, self.section_spread


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
    provenance = {
        "made_by": f"deconfound simulate {__version__}",
        SIMULATE: config.model_dump(mode="json"),
        "phenotypes": {
            name: dict(zip(config.trait_names(), shift.tolist(), strict=True))
            for name, shift in zip(plan.labels, plan.phenotypes, strict=True)
        },
    }
    return render_screen(
        Path(out),
        SimulatedCells(table, config),
        table,
        plan.roles,
        CHANNELS,
        provenance,
        title="simulate",
        threads=threads,
        quiet=quiet,
        files=plan.files,
    )


@dataclass(frozen=True)
class SimulatedCells:
    """Renders the cells of a table from their traits; all else comes from (seed, cell)."""

    table: pd.DataFrame
    config: SimulateConfig

    def __call__(self, rows: Rows, optics: Optics) -> Images:
        """The cells of `rows` as `optics` record them: (B, 4, size, size), the screen's dtype."""
        chosen = self.table.iloc[rows]
        cells = chosen[layout.CELL].tolist()
        values: Values = {
            name: chosen[f"Truth_{name}"].to_numpy(dtype=np.float32)
            for name in (*self.config.trait_names(), *POSE)
        }
        render = render_structure if self.config.phenotypes == "structure" else render_cells
        clean = render(values, self.config.seed, cells, self.config.size)
        noise = np.empty_like(clean)
        for cell, one in zip(cells, noise, strict=True):
            numpy_stream(self.config.seed, "noise", cell).standard_normal(out=one, dtype=np.float32)
        field = np.stack([values["FieldX"], values["FieldY"]], axis=1)
        image = apply_optics(clean, optics, field, noise, self._places[rows])
        return digitised(image, self.config.dtype)

    def draw(self, environment: Sequence[str]) -> Optics:
        """The optics of an environment, given by its groups, outermost first.

        Where the environment is a well, the effect of its position is part of them.
        """
        config, spread = self.config, self.config.spread()
        optics = draw_optics(environment, spread, len(CHANNELS), config.technical, config.seed)
        down_to_plate = environment[: 1 if config.layout == "ops" else 2]
        optics = with_position(
            optics, down_to_plate, spread, config.position_effect * config.technical, config.seed
        )
        if config.layout != "ops":
            return optics
        wells = self.table[layout.WELL]
        own = self._places[(wells == environment[-1]).to_numpy(bool)]
        return at_place(optics, own[0] if len(own) else np.zeros(2, dtype=np.float32))

    @cached_property
    def _places(self) -> Floats:
        """Column and row of the well of every cell, (N, 2) in −1 … 1."""
        return well_places(self.table[layout.WELL])


class _Plan(NamedTuple):
    """The cells, environment after environment, and the shift of the traits of each."""

    table: pd.DataFrame
    shift: Floats
    """(N, traits) shift of each cell, in logits."""
    labels: Sequence[str]
    phenotypes: Floats
    """(labels, traits) shift of each label, in logits."""
    roles: Roles
    files: Mapping[str, str] | None = None
    """The complex file of a pooled screen, by its name."""


def _arrayed(config: SimulateConfig) -> _Plan:
    """One label a well, well after well."""
    assert config.labels and config.plates and config.wells
    labels, series, plates, wells = config.labels, config.series, config.plates, config.wells
    if config.layout == "grid":
        places = layout.grid_layout(
            labels,
            series,
            plates,
            config.sections,
            wells,
            config.seed,
            overlap=config.label_overlap,
        )
    else:
        places = layout.lincs_layout(labels, series, config.maps, plates, wells, config.seed)
    cells, count = config.cells, len(places)
    if cells < count:
        raise UserError(f"{cells} cells for {count} wells; raise --cells or lower --wells")
    phenotypes = draw_phenotypes(labels, config.strength, config.seed)
    owner = np.arange(cells) * count // cells
    label = places[layout.LABEL].to_numpy()[owner]
    names = ["control", *layout.numbered("treatment-", labels - 1)]
    table = places.drop(columns=layout.LABEL).iloc[owner].reset_index(drop=True)
    table[PERTURBATION] = np.array(names)[label]
    table[CONTROL_TYPE] = np.where(label == 0, NEGATIVE, "treatment")
    levels = tuple(c for c in layout.LEVELS if c in places)
    roles = Roles(label=PERTURBATION, environment=levels, levels=levels, well=layout.WELL)
    return _Plan(table, phenotypes[label], names, phenotypes, roles)


def _pooled(config: SimulateConfig) -> _Plan:
    """Every gene in every well, well after well; the well is the environment."""
    assert config.plates and config.wells
    strength, seed = config.strength, config.seed
    library = layout.draw_library(config.genes, config.complexes, config.guides, strength, seed)
    table, shift = layout.pooled_cells(library, config.cells, config.wells, config.plates, seed)
    table[CONTROL_TYPE] = np.where(table[layout.GENE] == layout.NONTARGETING, NEGATIVE, "treatment")
    levels = (layout.PLATE, layout.WELL)
    well, split = layout.WELL, layout.SPLIT
    roles = Roles(label=layout.GENE, environment=levels, levels=levels, well=well, split=split)
    files = {COMPLEX_FILE: layout.complex_lines(library.complexes)}
    return _Plan(table, shift, library.genes, library.shift, roles, files)


def _with_cells(table: pd.DataFrame, shift: Floats, config: SimulateConfig) -> pd.DataFrame:
    cells = len(table)
    layout.add_places(table)
    table[layout.CELL] = np.arange(cells, dtype=np.int64)
    traits = draw_traits(shift, config.variation, config.seed, config.traits()).T
    drawn = dict(zip(config.trait_names(), traits, strict=True)) | draw_pose(cells, config.seed)
    for name, values in drawn.items():
        table[f"Truth_{name}"] = values
    return table


def simulated_cells(screen: Screen) -> SimulatedCells:
    """The renderer of a simulated screen's cells, as its provenance records it."""
    recorded = {"phenotypes": "all"} | screen.provenance[SIMULATE]  # as earlier builds drew them
    config = validated(SimulateConfig, recorded, f"{screen.path}/screen.json").complete()
    return SimulatedCells(screen.table, config)
