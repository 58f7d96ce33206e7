"""The file of an experiment: what it may say, and the configuration of each of its runs."""

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from deconfound.config import Options, did_you_mean, read_yaml, validated
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig, config_model, read_config

Rule = Literal["accuracy", "loss", "loto"]
SECTIONS = ("data", "training", "options")
OWN_LISTS = {"fold": "folds", "without": "select: [loto]"}
"""Options that no grid may hold, and where they belong."""


class Given(Options):
    """Values that hold, as in the configuration of a run, and values to search."""

    data: dict[str, Any] = Field({})
    training: dict[str, Any] = Field({})
    options: dict[str, Any] = Field({})
    grid: dict[str, list[Any]] = Field({})
    """Values to search, by the name of the option."""


class Entry(Given):
    """One line of the table: a method, what it starts from and what is searched."""

    method: str | None = None
    """Name of the method; the entry's own name if not given."""
    config: Path | None = None
    """Configuration of a run to start from; its path starts at the folder of this file."""
    intervene: str | None = None
    """Entry of a method that imputes: each run is trained on what its run of the same screen, fold
    and seed imputes."""
    intervention: dict[str, Any] = Field({})
    """Other options of the intervention: bank, style_images, relative_style, impute_into,
    correction_draws."""


class PlanFile(Given):
    """What the file of an experiment may say; values and grid hold for every entry."""

    screens: tuple[Path, ...] = Field(min_length=1)
    """Screens to run on."""
    folds: tuple[str, ...] = Field(min_length=1)
    """iid, given, COLUMN=GROUP, or "all groups of COLUMN"."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of every setting; of those taken alone, where `search_seeds` says so."""
    search_seeds: tuple[int, ...] = ()
    """Seeds on which the settings of an entry are compared; the other `seeds` are for the settings
    taken. All of `seeds` if not given."""
    select: tuple[Rule, ...] = Field(("accuracy",), min_length=1)
    """What chooses the setting of an entry: accuracy (highest, validation in distribution), loss
    (lowest, there), or loto (highest accuracy on training environments left out in turn)."""
    loto_seeds: tuple[int, ...] = ()
    """Seeds of the runs without one training environment; those of `search_seeds` if not given, or
    else all."""
    methods: dict[str, Entry] = Field(min_length=1)
    """Entries by name."""
    chains: tuple[str, ...] = ()
    """What is embedded and measured: ENTRY[+CORRECTION][+knn], such as erm or erm+symphony+knn. If
    none is given, runs are scored by their own predictions alone."""
    corrections: dict[str, dict[str, Any]] = Field({})
    """Options of the corrections in chains, by the name of the correction."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a chain ends in +knn."""
    measure: tuple[str, ...] = ("iid",)
    """Folds whose embeddings every metric measures; on other folds predictions alone are scored."""

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_entries(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        return {name: {} if entry is None else entry for name, entry in entries.items()}


def read_plan(path: Path) -> PlanFile:
    """The file of an experiment; raises a one-line UserError that names what is wrong in it."""
    path = Path(path)
    file = validated(PlanFile, read_yaml(path), str(path))
    for where, grid in [("grid", file.grid)] + [
        (f"methods.{name}.grid", entry.grid) for name, entry in file.methods.items()
    ]:
        for option, values in grid.items():
            if not values:
                raise UserError(f"{path}: {where}.{option} is empty; give one value or more")
    for seed in file.search_seeds:
        if seed not in file.seeds:
            raise UserError(
                f"{path}: search_seeds has {seed}; expected seeds among {listed(file.seeds)}"
            )
    return file


def grid_of(path: Path, file: PlanFile, name: str, entry: Entry) -> dict[str, list[Any]]:
    """The values that an entry searches; of an option in both grids the entry's values count.

    Raises UserError for an option that the entry's method does not have, or no grid may hold.
    """
    grid = file.grid | entry.grid
    sections = _sections(entry.method or name)
    for option in grid:
        if option in OWN_LISTS:
            raise UserError(
                f"{path}: methods.{name}: {option} is no option of a grid; name it under "
                f"{OWN_LISTS[option]}"
            )
        if option not in sections:
            hint = did_you_mean(option, sorted(sections))
            raise UserError(f"{path}: methods.{name}: unknown option {option!r} in grid; {hint}")
    return grid


def points(path: Path, file: PlanFile, name: str, entry: Entry) -> Iterator[dict[str, Any]]:
    """Every point of an entry's grid; raises as `grid_of`."""
    grid = grid_of(path, file, name, entry)
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def configured(
    path: Path, file: PlanFile, name: str, entry: Entry, point: dict[str, Any]
) -> RunConfig:
    """The configuration of one point, on no fold yet; one thread unless the file says otherwise."""
    method = entry.method or name
    values: dict[str, Any] = {"data": {}, "training": {"threads": 1}, "options": {}}
    intervention: dict[str, Any] = {}
    if entry.config is not None:
        started = read_config(path.parent / entry.config, method)
        if started.imputer is not None:
            raise UserError(
                f"{path.parent / entry.config}: intervenes with a run; an experiment names an "
                "entry, under intervene, leave it out here"
            )
        base = started.model_dump(mode="json", exclude_unset=True)
        for section in SECTIONS:
            values[section] |= base.get(section, {})
        intervention |= base.get("intervention", {})
    for section in SECTIONS:
        values[section] |= getattr(file, section) | getattr(entry, section)
    intervention |= entry.intervention
    if entry.intervene is not None:
        given = file.methods.get(entry.intervene)
        values["imputer"] = (given and given.method) or entry.intervene
        values["intervention"] = intervention | {"intervene": entry.intervene}
    elif any(value is not None for value in intervention.values()):
        raise UserError(f"{path}: methods.{name}: intervention belongs to intervene; add it")
    sections = _sections(method)
    for option, value in point.items():
        values[sections[option]][option] = value
    return validated(config_model(method), values, f"{path}: methods.{name}")


@cache
def _sections(method: str) -> dict[str, str]:
    """The section of every option of a method that a grid may hold."""
    model = config_model(method)
    return {
        option: section
        for section in SECTIONS
        for option in model.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    }
