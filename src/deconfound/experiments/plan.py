"""What an experiment will run: its file laid out as settings, runs and chains."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deconfound.data.screens.screen import Screen
from deconfound.experiments.nested import Pair
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.chain import Chain, Task
from deconfound.experiments.running.messages import run_directory
from deconfound.experiments.search_space import SearchOptions, Space
from deconfound.runs.config import RunConfig

MAX_RUNS = 10_000
"""Runs that a plan may have unless more are allowed."""


@dataclass(frozen=True)
class Job:
    """One run of an experiment."""

    name: str
    """METHOD-HASH of its screen's identity and its configuration: equal runs have equal names."""
    screen: Path
    identity: str
    config: RunConfig
    """Where it intervenes, the path of the other run starts at the experiment's directory."""
    needs: str | None = None
    """Name of the run that it intervenes with, which is done first."""

    def config_in(self, out: Path) -> RunConfig:
        """The configuration in the experiment's directory `out`."""
        if self.needs is None:
            return self.config
        return intervening(self.config, run_directory(out.resolve(), self.needs))


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
    nested: dict[Pair, str] = field(default_factory=dict)
    """Name of the run without each pair of groups, by which an entry is chosen."""
    measured: str | None = None
    """The name in `measure` of the plan file that is this fold; None where none is."""
    trial: int | None = None
    """Its number among the trials of a search; None for a point of a grid."""

    def searched(self) -> list[str]:
        """Names of the runs that it is compared by, loto's left out."""
        return [self.runs[seed] for seed in self.search_seeds or self.runs]


@dataclass(frozen=True)
class Search:
    """The trials of an entry on one screen and fold, which become settings as they are proposed."""

    entry: str
    screen: Screen
    fold: str
    options: SearchOptions
    space: Space
    about: dict[str, Any]
    """What must be the same for trials to be compared: ranges, choices, seeds, rule and
    configuration; of JSON."""
    seed: int
    """What proposals are drawn from, with the entry, the fold and the number of the trial."""
    lay_out: Callable[[int, dict[str, Any]], Setting]
    """Adds the setting of a trial, by its number and values, and its runs to the plan."""


@dataclass(frozen=True)
class Plan:
    """Everything an experiment may run."""

    file: PlanFile
    screens: dict[Path, Screen]
    settings: list[Setting]
    jobs: dict[str, Job]
    """All runs by name: those of every setting on every seed, also of seeds not searched."""
    chains: list[Chain] = field(default_factory=list)
    recommended: dict[str, None] = field(default_factory=dict)
    """Sentences on what was recommended for the screens, and why."""
    searches: list[Search] = field(default_factory=list)
    """Those whose settings are not laid out before the first runs have ended."""

    def search(self, settings: Sequence[Setting] | None = None) -> list[Job]:
        """The runs that settings are compared by, and all of an entry's only setting.

        With them those that they need. Of all settings, unless some are given.
        """
        names = {
            name
            for setting in (self.settings if settings is None else settings)
            for name in (
                *setting.searched(),
                *setting.left_out.values(),
                *setting.nested.values(),
            )
        }
        names |= {needed for name in names if (needed := self.jobs[name].needs) is not None}
        return [job for name, job in self.jobs.items() if name in names]

    def alternating(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with the first of every entry before the second of any: where time may end
        before the jobs do, what is done then compares all entries."""
        entry = {
            name: setting.entry
            for setting in self.settings
            for name in (*setting.nested.values(), *setting.runs.values())
        }
        of_entry: dict[str, list[Job]] = {}
        for job in jobs:
            of_entry.setdefault(entry.get(job.name, ""), []).append(job)
        rows = itertools.zip_longest(*of_entry.values())
        return [job for row in rows for job in row if job is not None]

    def tasks(self, setting: Setting) -> list[Task]:
        """What is done with each run of a setting, when its setting is the one taken."""
        whole = setting.measured is not None
        own = (Task(chain, whole) for chain in self.chains if chain.entry == setting.entry)
        return [task for task in own if task.embeds]

    def nested_tasks(self, setting: Setting) -> list[Task]:
        """What is done with each run of a setting that chooses: its post hoc chains."""
        own = (Task(chain, False) for chain in self.chains if chain.entry == setting.entry)
        return [task for task in own if task.embeds]


def intervening(config: RunConfig, run: Path) -> RunConfig:
    """The configuration that intervenes with the run in the directory `run`."""
    options = config.intervention.model_copy(update={"intervene": run})
    return config.model_copy(update={"intervention": options})
