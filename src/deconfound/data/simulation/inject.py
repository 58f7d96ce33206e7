"""Injected screens: real cells, dealt to the wells of a layout, under planted technical effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from deconfound.arrays import Floats, Images, Rows
from deconfound.config import did_you_mean, validated
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.data.simulation import layout
from deconfound.data.simulation.optics import (
    EnvironmentOptions,
    Optics,
    apply_optics,
    digitised,
    draw_optics,
)
from deconfound.data.simulation.position import well_places, with_position
from deconfound.data.simulation.rendering import CHUNK, render_screen
from deconfound.data.tables.table import Roles, joined, joined_key
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.runtime.seeds import numpy_stream
from deconfound.version import __version__

INJECTED = "injected"
"""Entry of the provenance that an injected screen has and no other."""
FIELD_X, FIELD_Y = "Truth_FieldX", "Truth_FieldY"
WRITTEN = frozenset((*layout.PLACES, layout.CELL, FIELD_X, FIELD_Y))
"""Columns of a cell's place in the injected screen; those of the clean screen are dropped."""


class InjectConfig(EnvironmentOptions):
    """The environments of an injected screen; the defaults are those of `simulate`."""

    layout: Literal["grid", "lincs"] = "grid"
    """grid: sections in plates in series, labels only partly shared. lincs: plate maps with
    exclusive treatments and a shared control, one full series and several partial ones."""
    control: str | None = None
    """Label that is the negative control and lies on every plate, which lincs needs; if not given,
    no label does."""
    plates: int = Field(2, ge=1)
    """Plates of a series (grid), or replicate plates of a map in a partial series (lincs)."""
    wells: int = Field(2, ge=1)
    """Wells of a label in a section (grid) or on a plate (lincs)."""
    plate_spread: float = Field(0.4, ge=0)
    """Standard deviation of the technical draws from plate to plate."""
    exposure: float = Field(0.5, gt=0, le=1)
    """What the brightest pixel of the clean screen reaches without technical effects, fraction of
    the full scale; the rest is room for stronger staining."""

    def spread(self) -> tuple[float, ...]:
        """Standard deviation of the technical draws at each level, outermost first."""
        return self.series_spread, self.plate_spread, self.section_spread


def inject(
    clean: Path,
    out: Path,
    *,
    config: InjectConfig | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Screen:
    """Write at `out` the cells of the screen `clean` under technical effects, and open it.

    The cells of each label are dealt at random to its wells, every cell once and as evenly as
    possible. The table has the places, the label, `Truth_Cell`, the cell's row in the clean screen,
    its place in the field of view, and the columns of `clean` that are neither its environment,
    levels, well nor split. Images keep shape, dtype and channels. The provenance records the clean
    screen and each environment's `Optics`. The images do not depend on `threads` (all cores if not
    given).

    Raises UserError if `out` exists, if `clean` holds profiles, is injected already, has no label,
    a row without one, fewer than two, a label with fewer cells than wells, images that are not
    square or of float32 or all black, and for a control that is unknown or that lincs lacks.
    """
    config = config or InjectConfig()
    refuse_existing(Path(out))
    source = open_screen(clean)
    label = _label_of(source)
    places, names = _layout(source, label, config)
    table = _with_cells(places, source, label, names, config)
    levels = tuple(c for c in layout.LEVELS if c in places)
    roles = Roles(label=label, environment=levels, levels=levels, well=layout.WELL)
    brightest = _brightest(source)
    provenance = {
        "made_by": f"deconfound inject {__version__}",
        INJECTED: {
            "clean": {
                "path": str(Path(clean).absolute()),
                "name": source.name,
                "identity": source.identity,
            },
            "options": config.model_dump(mode="json"),
            "brightest": brightest,
        },
        "source_provenance": source.provenance,
    }
    by = source.index.percentile_by
    return render_screen(
        Path(out),
        InjectedCells(table, source, config, brightest),
        table,
        roles,
        source.channels,
        provenance,
        title="inject",
        threads=threads,
        quiet=quiet,
        percentiles=(source.index.transform, by if by in table else None),
    )


def clean_name(provenance: Mapping[str, Any]) -> str | None:
    """The name of the clean screen of an injected screen; None for any other screen."""
    found = provenance.get(INJECTED)
    return None if found is None else str(found["clean"]["name"])


@dataclass(frozen=True)
class InjectedCells:
    """Renders the cells of a table from their clean images; all else comes from (seed, cell)."""

    table: pd.DataFrame
    clean: Screen
    config: InjectConfig
    brightest: int
    """Largest pixel of the clean screen."""

    def __call__(self, rows: Rows, optics: Optics) -> Images:
        """The cells of `rows` as `optics` record them: (B, C, S, S), the clean screen's dtype."""
        chosen = self.table.iloc[rows]
        cells = chosen[layout.CELL].to_numpy(dtype=np.int64)
        light = self.clean.read(cells).astype(np.float32)
        light *= np.float32(self.config.exposure / self.brightest)
        noise = np.empty_like(light)
        for cell, one in zip(cells.tolist(), noise, strict=True):
            stream = numpy_stream(self.config.seed, "injected noise", cell)
            stream.standard_normal(out=one, dtype=np.float32)
        field = chosen[[FIELD_X, FIELD_Y]].to_numpy(dtype=np.float32)
        image = apply_optics(light, optics, field, noise, self._places[rows])
        return digitised(image, str(self.clean.dtype))

    def draw(self, environment: Sequence[str]) -> Optics:
        """The optics of an environment, given by its groups, outermost first."""
        config, spread, channels = self.config, self.config.spread(), len(self.clean.channels)
        optics = draw_optics(environment, spread, channels, config.technical, config.seed)
        return with_position(
            optics, environment[:2], spread, config.position_effect * config.technical, config.seed
        )

    @cached_property
    def _places(self) -> Floats:
        """Column and row of the well of every cell, (N, 2) in −1 … 1."""
        return well_places(self.table[layout.WELL])


def injected_cells(screen: Screen) -> InjectedCells:
    """What renders the cells of an injected screen, from the clean screen where it then lay.

    Raises UserError if that is gone or has changed.
    """
    recorded = screen.provenance[INJECTED]
    path = Path(recorded["clean"]["path"])
    if not holds_screen(path):
        raise UserError(
            f"{screen.path}: its clean screen {path} is gone, so its cells cannot be rendered "
            "elsewhere; put it back, or inject again"
        )
    clean = open_screen(path)
    if clean.identity != recorded["clean"]["identity"]:
        raise UserError(
            f"{screen.path}: its clean screen {path} has changed since; put the old one back, or "
            "inject again"
        )
    config = validated(InjectConfig, recorded["options"], f"{screen.path}/screen.json")
    return InjectedCells(screen.table, clean, config, recorded["brightest"])


def _label_of(clean: Screen) -> str:
    """The label column of a screen that can be injected into."""
    if clean.holds_profiles:
        raise UserError(f"{clean.path}: holds profiles; inject needs a screen of images")
    if INJECTED in clean.provenance:
        raise UserError(
            f"{clean.path}: is injected already; give its clean screen, "
            f"{clean.provenance[INJECTED]['clean']['path']}"
        )
    if clean.roles.label is None:
        raise UserError(f"{clean.path}: has no label, by which cells are dealt; ingest it with one")
    if clean.roles.label in WRITTEN:
        raise UserError(
            f"{clean.path}: its label {clean.roles.label} is a column that inject writes; rename it"
        )
    if clean.dtype.kind != "u":
        raise UserError(
            f"{clean.path}: pixels of type {clean.dtype}, which has no full scale; ingest them as "
            "uint8 or uint16"
        )
    height, width = clean.image_shape[1:]
    if height != width:
        raise UserError(
            f"{clean.path}: images of {height} × {width} pixels; ingest square ones, as with --size"
        )
    return clean.roles.label


def _layout(clean: Screen, label: str, config: InjectConfig) -> tuple[pd.DataFrame, list[str]]:
    """The wells, and the labels in the order of their numbers there."""
    names = list(clean.coded([label]).names)
    if len(names) < 2:
        raise UserError(f"{clean.path}: {label} has {len(names)} value; inject needs two or more")
    control = config.control if config.control is None else joined_key(config.control, [label])
    if control is not None and control not in names:
        raise UserError(f"{clean.path}: no {label} is {control!r}; {did_you_mean(control, names)}")
    if control is not None:
        names.insert(0, names.pop(names.index(control)))
    series, plates, wells, seed = config.series, config.plates, config.wells, config.seed
    if config.layout == "grid":
        with_control = control is not None
        places = layout.grid_layout(
            len(names), series, plates, config.sections, wells, seed,
            control=with_control, overlap=config.label_overlap,
        )  # fmt: skip
    elif config.label_overlap is not None:
        raise UserError("--label-overlap with --layout lincs; it is of the grid alone")
    elif control is None:
        raise UserError("--layout lincs needs a control on every plate; name its label, --control")
    else:
        places = layout.lincs_layout(len(names), series, config.maps, plates, wells, seed)
    return places, names


def _with_cells(
    places: pd.DataFrame, clean: Screen, label: str, names: list[str], config: InjectConfig
) -> pd.DataFrame:
    cells, well = _dealt(clean, label, names, places[layout.LABEL].to_numpy(), config.seed)
    table = places.drop(columns=layout.LABEL).iloc[well].reset_index(drop=True)
    layout.add_places(table)
    roles = clean.roles
    left = WRITTEN.union(roles.environment, roles.levels, {roles.well, roles.split}) - {label}
    of_clean = clean.table[[name for name in clean.table if name not in left]]
    of_clean = of_clean.iloc[cells].reset_index(drop=True)
    table = pd.concat([table, of_clean], axis=1)
    if config.control is not None:
        is_control = (joined(table, [label]) == joined_key(config.control, [label])).to_numpy(bool)
        table[CONTROL_TYPE] = np.where(is_control, NEGATIVE, "treatment")
    table[layout.CELL] = cells
    streams = (numpy_stream(config.seed, "injected field", cell) for cell in cells.tolist())
    field = 2 * np.array([stream.random(2, dtype=np.float32) for stream in streams]) - 1
    table[FIELD_X], table[FIELD_Y] = field.T
    return table


def _dealt(
    clean: Screen, label: str, names: list[str], of_well: npt.NDArray[np.int64], seed: int
) -> tuple[Rows, Rows]:
    """Every row of the clean screen once, and the well it is dealt to, well after well: (N,) each.

    `of_well` numbers the label of each well.
    """
    codes = clean.coded([label], names).codes
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise UserError(
            f"{clean.path}: row {missing[0]} (from 0) has no {label}; give it one, or drop it"
        )
    stream = numpy_stream(seed, "deal")
    shares: dict[int, Rows] = {}
    for number, name in enumerate(names):
        cells = stream.permutation(np.flatnonzero(codes == number))
        wells = np.flatnonzero(of_well == number)
        if len(cells) < len(wells):
            raise UserError(
                f"{clean.path}: {len(cells)} cells of {label} {name} for {len(wells)} wells; lower "
                "--wells, --sections or --plates"
            )
        shares |= zip(wells.tolist(), np.array_split(cells, len(wells)), strict=True)
    dealt = [np.sort(shares[well]) for well in range(len(of_well))]
    return np.concatenate(dealt), np.repeat(np.arange(len(of_well)), [len(one) for one in dealt])


def _brightest(clean: Screen) -> int:
    chunks = np.split(np.arange(len(clean)), range(CHUNK, len(clean), CHUNK))
    largest = max(int(clean.read(rows).max()) for rows in chunks)
    if largest == 0:
        raise UserError(f"{clean.path}: every image is black; there is nothing to inject into")
    return largest
