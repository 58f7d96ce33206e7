"""What a sweep will run: its file, read and laid out as settings and runs."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from deconfound.config import DataOptions, Options, did_you_mean, read_yaml, validated
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import pose, roles_of
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.experiments.running.messages import run_directory
from deconfound.intervention.relative_style import refuse_absolute
from deconfound.intervention.source_run import imputing_methods
from deconfound.runs.config import RunConfig, config_model, read_config

Rule = Literal["accuracy", "loss", "loto"]
ALL_GROUPS = "all groups of "
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
    """Configuration of a run to start from; its path starts at the sweep file's folder."""
    intervene: str | None = None
    """Entry of a method that imputes: each run is trained on what its run of the same screen, fold
    and seed imputes."""
    intervention: dict[str, Any] = Field({})
    """Other options of the intervention: bank, style_images, relative_style, impute_into,
    correction_draws."""


class SweepFile(Given):
    """What a sweep file may say; values and grid hold for every entry."""

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

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_entries(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        return {name: {} if entry is None else entry for name, entry in entries.items()}


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str
    """METHOD-HASH of its screen's identity and its configuration: equal runs have equal names."""
    screen: Path
    identity: str
    config: RunConfig
    """Where it intervenes, the path of the other run starts at the sweep's directory."""
    needs: str | None = None
    """Name of the run that it intervenes with, which is done first."""

    def config_in(self, out: Path) -> RunConfig:
        """The configuration in the sweep's directory `out`."""
        if self.needs is None:
            return self.config
        path = run_directory(out.resolve(), self.needs)
        options = self.config.intervention.model_copy(update={"intervene": path})
        return self.config.model_copy(update={"intervention": options})


@dataclass(frozen=True)
class Setting:
    """One point of an entry's grid on one screen and fold, and its runs."""

    entry: str
    screen: Path
    fold: str
    values: dict[str, Any]
    """The point of the grid, by the name of the option."""
    runs: dict[int, str] = field(default_factory=dict)
    """Name of the run of each seed."""
    left_out: dict[tuple[int, str], str] = field(default_factory=dict)
    """Name of the run of each seed without each training environment; empty where loto has
    nothing to choose."""
    search_seeds: tuple[int, ...] = ()
    """Seeds that it is compared on with other settings; empty for all."""

    def searched(self) -> list[str]:
        """Names of the runs that it is compared by, loto's left out."""
        return [self.runs[seed] for seed in self.search_seeds or self.runs]


@dataclass(frozen=True)
class Plan:
    """Everything a sweep may run."""

    file: SweepFile
    screens: dict[Path, Screen]
    settings: list[Setting]
    jobs: dict[str, Job]
    """By name; where seeds are searched, those of every setting on every seed."""

    def search(self) -> list[Job]:
        """The runs that settings are compared by, and all of an entry's only setting.

        With them those that they need.
        """
        names = {
            name
            for setting in self.settings
            for name in (*setting.searched(), *setting.left_out.values())
        }
        names |= {needed for name in names if (needed := self.jobs[name].needs) is not None}
        return [job for name, job in self.jobs.items() if name in names]


def read_sweep(path: Path) -> SweepFile:
    """A sweep file; raises a one-line UserError that names what is wrong in it."""
    path = Path(path)
    file = validated(SweepFile, read_yaml(path), str(path))
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


def make_plan(path: Path, file: SweepFile | None = None) -> Plan:
    """Lay out the sweep file `path`, or `file`, which is to be written there.

    Raises UserError for an unknown method, option, screen or fold, a value that an option does not
    take, an empty grid, a seed to search that is no seed, and a fold that a screen does not have.
    """
    path = Path(path)
    file = file or read_sweep(path)
    screens = [open_screen(screen) for screen in file.screens]
    environments = _Environments()
    plan = Plan(file, {screen.path: screen for screen in screens}, [], {})
    for (name, entry), screen in itertools.product(file.methods.items(), screens):
        points = list(_points(path, file, name, entry))
        for point in points:
            base = _config(path, file, name, entry, point)
            for fold in _folds(file, screen, base.data):
                several = len(points) > 1
                searched = file.search_seeds if several else ()
                setting = Setting(name, screen.path, fold, point, search_seeds=searched)
                imputer = _imputer(path, file, name, entry, base)
                _add_runs(plan, setting, screen, base, environments, several, imputer)
                plan.settings.append(setting)
    return plan


class _Environments:
    """Training environments of folds, each fold posed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, DataOptions], tuple[str, ...]] = {}

    def __call__(self, screen: Screen, options: DataOptions) -> tuple[str, ...]:
        key = (screen.path, options)
        if key not in self._known:
            self._known[key] = pose(screen, options).environment.names
        return self._known[key]


def _add_runs(
    plan: Plan,
    setting: Setting,
    screen: Screen,
    base: RunConfig,
    known: _Environments,
    chosen: bool,
    imputer: RunConfig | None,
) -> None:
    def add(seed: int, without: str | None) -> str:
        held_out = {"fold": setting.fold, "without": without}

        def of(config: RunConfig, needs: str | None = None) -> Job:
            data = config.data.model_copy(update=held_out)
            job = _job(screen, config.model_copy(update={"seed": seed, "data": data}), needs)
            plan.jobs.setdefault(job.name, job)
            return job

        return of(base, None if imputer is None else of(imputer).name).name

    environments = known(screen, base.data.model_copy(update={"fold": setting.fold}))
    for seed in plan.file.seeds:
        setting.runs[seed] = add(seed, None)
    if not chosen or "loto" not in plan.file.select:
        return
    if len(environments) < 2:
        raise UserError(
            f"select loto: fold {setting.fold} trains on {len(environments)} environment; expected "
            "2 or more, select by accuracy or loss"
        )
    file = plan.file
    seeds = file.loto_seeds or file.search_seeds or file.seeds
    for seed, without in itertools.product(seeds, environments):
        setting.left_out[seed, without] = add(seed, without)


def _job(screen: Screen, config: RunConfig, needs: str | None = None) -> Job:
    if needs is not None:
        path = run_directory(Path(), needs)
        options = config.intervention.model_copy(update={"intervene": path})
        config = config.model_copy(update={"intervention": options})
    identity = json.dumps([screen.identity, config.model_dump(mode="json")], sort_keys=True)
    name = f"{config.method}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return Job(name, screen.path.resolve(), screen.identity, config, needs)


def _imputer(
    path: Path, file: SweepFile, name: str, entry: Entry, base: RunConfig
) -> RunConfig | None:
    """The configuration, on no fold yet, of what an entry of the configuration `base` needs."""
    if entry.intervene is None:
        return None
    where, wanted = f"{path}: methods.{name}", entry.intervene
    if wanted not in file.methods:
        hint = did_you_mean(wanted, list(file.methods))
        raise UserError(f"{where}: intervene names {wanted!r}, which is no entry; {hint}")
    other = file.methods[wanted]
    method = other.method or wanted
    if other.intervene is not None or method not in imputing_methods():
        raise UserError(
            f"{where}: intervene names {wanted!r}, which cannot impute; name an entry of one of "
            f"{', '.join(imputing_methods())}"
        )
    if base.intervention.relative_style is not None:
        refuse_absolute(method, where)
    points = list(_points(path, file, wanted, other))
    if len(points) > 1:
        raise UserError(
            f"{where}: intervene names {wanted!r}, which has {len(points)} settings; expected one, "
            "give it no grid"
        )
    return _config(path, file, wanted, other, points[0])


def _points(path: Path, file: SweepFile, name: str, entry: Entry) -> Iterator[dict[str, Any]]:
    """Every point of an entry's grid; of an option in both grids the entry's values count."""
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
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _config(
    path: Path, file: SweepFile, name: str, entry: Entry, point: dict[str, Any]
) -> RunConfig:
    """The configuration of one point, on no fold yet; one thread unless the file says otherwise."""
    method = entry.method or name
    values: dict[str, Any] = {"data": {}, "training": {"threads": 1}, "options": {}}
    intervention: dict[str, Any] = {}
    if entry.config is not None:
        started = read_config(path.parent / entry.config, method)
        if started.imputer is not None:
            raise UserError(
                f"{path.parent / entry.config}: intervenes with a run; a sweep names an entry, "
                "under intervene, leave it out here"
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


def _folds(file: SweepFile, screen: Screen, data: DataOptions) -> list[str]:
    """The sweep's folds on a screen, each once."""
    found: list[str] = []
    for fold in file.folds:
        if not fold.startswith(ALL_GROUPS):
            found.append(fold)
            continue
        column = fold.removeprefix(ALL_GROUPS)
        possible = [
            group.fold
            for group in groups(screen.table, roles_of(screen, data), column)
            if group.refused is None
        ]
        if not possible:
            raise UserError(f"{screen.path}: no group of {column} can be held out")
        found += possible
    return list(dict.fromkeys(found))
