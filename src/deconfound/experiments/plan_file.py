"""The file of an experiment: what it may say, and the configuration of each of its runs."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from deconfound.config import Options, did_you_mean, read_yaml, validated
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.experiments.search_space import Range, SearchOptions, Space, numbers_of
from deconfound.runs.config import RunConfig, config_model, read_config, sections_of
from deconfound.runs.recommended import METHOD, RECOMMENDED, recommend

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
    """Name of the method, or recommended: what `fit` without a method takes; the entry's own name
    if not given."""
    config: Path | None = None
    """Configuration of a run to start from; its path starts at the folder of this file."""
    intervene: str | None = None
    """Entry of a method that imputes: each run is trained on what its run of the same screen, fold
    and seed imputes."""
    intervention: dict[str, Any] = Field({})
    """Other options of the intervention: bank, style_images, relative_style, impute_into,
    correction_draws."""
    search: SearchOptions | None = None
    """How trials are drawn from `ranges` and from the values of the grid; every point of the grid
    if not given."""
    ranges: dict[str, Range] = Field({})
    """Ranges that trials are drawn from, by the name of the option."""


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
    choose: bool = False
    """On each held-out fold choose one of the chains, or entries, by other groups of its level that
    are left out of training in turn; see `nested`."""
    chains: tuple[str, ...] = ()
    """What is embedded and measured: ENTRY[+CORRECTION][+knn], such as erm or erm+symphony+knn. If
    none is given, runs are scored by their own predictions alone."""
    corrections: dict[str, dict[str, Any]] = Field({})
    """Options of the corrections in chains, by the name of the correction."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a chain ends in +knn."""
    measure: tuple[str, ...] = ("iid",)
    """Folds whose embeddings every metric measures; on other folds predictions alone are scored."""

    @property
    def seeds_searched(self) -> tuple[int, ...]:
        """Seeds on which settings are compared."""
        return self.search_seeds or self.seeds

    @property
    def seeds_of_loto(self) -> tuple[int, ...]:
        """Seeds of the runs without one training environment."""
        return self.loto_seeds or self.seeds_searched

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
    for name, entry in file.methods.items():
        if entry.search is None and entry.ranges:
            raise UserError(
                f"{path}: methods.{name}: ranges belong to search; add "
                "`search: {trials: 20}`, or list values under grid"
            )
        if entry.search is not None and not (entry.ranges or entry.grid or file.grid):
            raise UserError(
                f"{path}: methods.{name}: search has nothing to draw from; name options under "
                "ranges, or list values under grid"
            )
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
    _refuse_unknown(path, name, entry, grid, "grid")
    return grid


def points(path: Path, file: PlanFile, name: str, entry: Entry) -> Iterator[dict[str, Any]]:
    """Every point of an entry's grid; raises as `grid_of`."""
    grid = grid_of(path, file, name, entry)
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def space_of(path: Path, file: PlanFile, name: str, entry: Entry) -> Space:
    """What the trials of an entry with `search` are drawn from; of an option in the file's grid and
    in the entry's ranges the range counts.

    Raises UserError as `grid_of` does, for an option in both of the entry, and for a range of an
    option that is no number.
    """
    _refuse_unknown(path, name, entry, entry.ranges, "ranges")
    if twice := entry.ranges.keys() & entry.grid.keys():
        raise UserError(
            f"{path}: methods.{name}: {min(twice)} stands in grid and in ranges; leave one out"
        )
    model, sections = config_model(_method(name, entry)), _sections(_method(name, entry))
    space: Space = {}
    for option, given in entry.ranges.items():
        options: Any = model.model_fields[sections[option]].annotation
        where = f"{path}: methods.{name}.ranges.{option}"
        space[option] = numbers_of(given, options.model_fields[option].annotation, where)
    grid = grid_of(path, file, name, entry)
    return space | {option: grid[option] for option in grid if option not in space}


def _refuse_unknown(path: Path, name: str, entry: Entry, given: Iterable[str], where: str) -> None:
    """Raise UserError for an option that no grid may hold, or that the method does not have."""
    sections = _sections(_method(name, entry))
    for option in given:
        if option in OWN_LISTS:
            raise UserError(
                f"{path}: methods.{name}: {option} is no option of a grid; name it under "
                f"{OWN_LISTS[option]}"
            )
        if option not in sections:
            hint = did_you_mean(option, sorted(sections))
            raise UserError(f"{path}: methods.{name}: unknown option {option!r} in {where}; {hint}")


def configured(
    path: Path,
    file: PlanFile,
    name: str,
    entry: Entry,
    point: dict[str, Any],
    recipe: RunConfig | None = None,
) -> RunConfig:
    """The configuration of one point, on no fold yet; one thread unless the file says otherwise.

    What the file and the point say wins over the `recipe` that is recommended.
    """
    method = _method(name, entry)
    values: dict[str, Any] = {"data": {}, "training": {"threads": 1}, "options": {}}
    if recipe is not None:
        started = recipe.model_dump(mode="json", exclude_unset=True)
        for section in SECTIONS:
            values[section] |= started.get(section, {})
    intervention: dict[str, Any] = {}
    if _is_recommended(name, entry) and entry.intervene is not None:
        raise UserError(
            f"{path}: methods.{name}: {RECOMMENDED} is not trained on imputed images; name "
            f"{METHOD}+{entry.intervene}, or leave {entry.intervene} out"
        )
    if entry.config is not None:
        given = read_config(path.parent / entry.config, method)
        if given.imputer is not None:
            raise UserError(
                f"{path.parent / entry.config}: intervenes with a run; an experiment names an "
                "entry, under intervene, leave it out here"
            )
        base = given.model_dump(mode="json", exclude_unset=True)
        for section in SECTIONS:
            values[section] |= base.get(section, {})
        intervention |= base.get("intervention", {})
    for section in SECTIONS:
        values[section] |= getattr(file, section) | getattr(entry, section)
    intervention |= entry.intervention
    if entry.intervene is not None:
        other = file.methods.get(entry.intervene)
        values["imputer"] = (other and other.method) or entry.intervene
        values["intervention"] = intervention | {"intervene": entry.intervene}
    elif any(value is not None for value in intervention.values()):
        raise UserError(f"{path}: methods.{name}: intervention belongs to intervene; add it")
    sections = _sections(method)
    for option, value in point.items():
        values[sections[option]][option] = value
    return validated(config_model(method), values, f"{path}: methods.{name}")


def on_fold(
    path: Path,
    file: PlanFile,
    name: str,
    entry: Entry,
    point: dict[str, Any],
    screen: Screen,
    fold: str,
) -> tuple[RunConfig, list[str]]:
    """The configuration of one point on a fold of a screen, and what was recommended, if it was."""
    update = {"fold": fold}
    config = configured(path, file, name, entry, point)
    said = []
    if _is_recommended(name, entry):
        found = recommend(screen, config.data.model_copy(update=update))
        config = configured(path, file, name, entry, point, found.config)
        said.append(f"{name}: {found.text}.")
    return config.model_copy(update={"data": config.data.model_copy(update=update)}), said


def _is_recommended(name: str, entry: Entry) -> bool:
    return (entry.method or name) == RECOMMENDED


def _method(name: str, entry: Entry) -> str:
    return METHOD if _is_recommended(name, entry) else entry.method or name


def _sections(method: str) -> dict[str, str]:
    """The section of every option of a method that a grid may hold."""
    every = sections_of(method).items()
    return {option: section for option, section in every if section in SECTIONS}
