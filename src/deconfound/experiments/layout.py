"""The layout of a plan file: every setting, and the run of each of its folds and seeds."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deconfound import methods
from deconfound.config import DataOptions, did_you_mean
from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import joined
from deconfound.errors import UserError
from deconfound.experiments.held_out import Folds, spelled_out
from deconfound.experiments.nested import Pair, pairs
from deconfound.experiments.plan import MAX_RUNS, Job, Plan, Search, Setting, intervening
from deconfound.experiments.plan_file import (
    Entry,
    PlanFile,
    configured,
    grid_of,
    on_fold,
    points,
    read_plan,
    space_of,
)
from deconfound.experiments.search_space import SearchOptions, corners, fixed_part
from deconfound.experiments.trials import require
from deconfound.experiments.words import read_chain
from deconfound.intervention.source_run import imputing_methods, refuse_standardised
from deconfound.intervention.styles import refuse_absolute
from deconfound.methods import post_hoc
from deconfound.runs.config import RunConfig
from deconfound.training.positives import sampler_for


def make_plan(
    path: Path,
    file: PlanFile | None = None,
    folds: Folds | None = None,
    *,
    max_runs: int = MAX_RUNS,
) -> Plan:
    """Lay out the plan file `path`, or `file`, which is to be written there.

    `folds` are those that were posed already. Raises UserError for more runs than `max_runs`, an
    unknown method, option, screen, fold or chain, a value that an option does not take, an empty
    grid, a seed to search that is no seed, and a fold that a screen does not have.
    """
    path = Path(path)
    file = file or read_plan(path)
    screens = [open_screen(screen) for screen in file.screens]
    chains = [read_chain(word, file.methods, file.knn, file.corrections) for word in file.chains]
    for name in file.corrections:
        if name not in post_hoc.names():
            hint = did_you_mean(name, post_hoc.names())
            raise UserError(f"{path}: corrections: unknown correction {name!r}; {hint}")
    layout = _Layout(path, Plan(file, {s.path: s for s in screens}, [], {}, chains), folds)
    refuse_many_runs(path, layout.count(screens), max_runs)
    for (name, entry), screen in itertools.product(file.methods.items(), screens):
        layout.add_entry(name, entry, screen)
    for fold in file.measure:
        if fold != "iid" and fold not in layout.named:
            hint = did_you_mean(fold, list(layout.measured))
            raise UserError(f"{path}: measure names {fold!r}, which is no fold of the plan; {hint}")
    return layout.plan


def refuse_many_runs(path: Path, runs: int, max_runs: int) -> None:
    """Raise UserError if a plan has more runs than `max_runs`."""
    if runs > max_runs:
        raise UserError(
            f"{path}: {runs:,} runs are more than {max_runs:,}; give fewer values, folds or seeds, "
            f"or allow them with --max-runs {runs}"
        )


class _Layout:
    """A plan as it grows, entry by entry."""

    def __init__(self, path: Path, plan: Plan, folds: Folds | None) -> None:
        self.path, self.plan = path, plan
        self.measured: dict[str, str | None] = {}
        """By fold of the plan: its name in `measure` of the file; None where it has none."""
        self.named: set[str] = set()
        """Names in `measure` that are folds of the plan."""
        self._folds = folds or Folds()
        self._pairs: dict[tuple[Path, str, str], list[Pair]] = {}

    def count(self, screens: Sequence[Screen]) -> int:
        """The runs of all entries, by the lengths of their grids: no point is laid out.

        Where loto leaves environments out, as if each fold had as many as the whole screen.
        """
        file, runs = self.plan.file, 0
        for (name, entry), screen in itertools.product(file.methods.items(), screens):
            if entry.search is None:
                settings = math.prod(map(len, grid_of(self.path, file, name, entry).values()))
                first = next(points(self.path, file, name, entry), {})
            else:
                settings = entry.search.trials
                first = corners(space_of(self.path, file, name, entry))[0]
            data = configured(self.path, file, name, entry, first).data
            of_setting = len(file.seeds)
            if (settings > 1 or entry.search is not None) and "loto" in file.select:
                environments = joined(screen.table, roles_of(screen, data).environment).nunique()
                of_setting += len(file.seeds_of_loto) * environments
            folds = spelled_out(file.folds, screen, data)
            together = {
                p for fold in folds if file.choose for p in self._beside(screen, data, fold)
            }
            runs += settings * (len(folds) * of_setting + len(together))
        return runs

    def add_entry(self, name: str, entry: Entry, screen: Screen) -> None:
        if entry.search is not None:
            self._add_search(name, entry, entry.search, screen)
            return
        every = list(points(self.path, self.plan.file, name, entry))
        for point in every:
            base = configured(self.path, self.plan.file, name, entry, point)
            imputer = self._imputer(name, entry, base)
            for fold in self._spelled_out(screen, base.data):
                self._add_setting(Setting(name, screen.path, fold, point), imputer, len(every) > 1)

    def _add_search(self, name: str, entry: Entry, options: SearchOptions, screen: Screen) -> None:
        """Add the searches of an entry, when both ends of every range and every choice are checked.

        Their trials become settings, and a plan's settings stand in the order of its entries.
        """
        file = self.plan.file
        require(f"{self.path}: methods.{name}: search")
        space = space_of(self.path, file, name, entry)
        for corner in corners(space):
            base = configured(self.path, file, name, entry, corner)
            imputer = self._imputer(name, entry, base)
        order = [(entry, place) for entry in file.methods for place in self.plan.screens]
        for fold in self._spelled_out(screen, base.data):

            def lay_out(trial: int, point: dict[str, Any], fold: str = fold) -> Setting:
                base = configured(self.path, file, name, entry, point)
                place = Setting(name, screen.path, fold, point, trial=trial)
                setting = self._add_setting(place, self._imputer(name, entry, base), True)
                self.plan.settings.sort(key=lambda one: order.index((one.entry, one.screen)))
                return setting

            own, _ = on_fold(self.path, file, name, entry, corner, screen, fold)
            if "loto" in file.select:
                _refuse_one_environment(fold, self._folds.pose(screen, own.data).environments)
            about = {
                "rule": file.select[0],
                "seeds": file.seeds_of_loto if file.select[0] == "loto" else file.seeds_searched,
                "ranges and choices": space,
                "configuration": fixed_part(own, space),
                "imputer": None if imputer is None else fixed_part(imputer, {}),
            }
            search = Search(name, screen, fold, options, space, about, file.seeds[0], lay_out)
            self.plan.searches.append(search)

    def _spelled_out(self, screen: Screen, data: DataOptions) -> list[str]:
        file, roles = self.plan.file, roles_of(screen, data)
        named = {fold_key(fold, roles): fold for fold in file.measure}
        folds = spelled_out(file.folds, screen, data)
        self.measured |= {fold: named.get(fold) for fold in folds}
        self.named |= {named[fold] for fold in folds if fold in named}
        return folds

    def _add_setting(self, place: Setting, imputer: RunConfig | None, several: bool) -> Setting:
        """Add a setting and its runs; with `several` it is compared with others of its entry."""
        file, entry = self.plan.file, self.plan.file.methods[place.entry]
        screen = self.plan.screens[place.screen]
        searched = file.search_seeds if several else ()
        setting = replace(place, search_seeds=searched, measured=self.measured[place.fold])
        own, said = on_fold(self.path, file, place.entry, entry, place.values, screen, place.fold)
        self.plan.recommended.update(dict.fromkeys(said))
        posed = self._folds.pose(screen, own.data)
        base = sampler_for(own, posed.label_rows, posed.train_rows)
        for seed in file.seeds:
            setting.runs[seed] = self._add(base, screen, imputer, seed)
        if several and "loto" in file.select:
            self._leave_out(setting, screen, base, imputer, posed.environments)
        if file.choose:
            self._nest(setting, entry, screen, imputer)
        self.plan.settings.append(setting)
        return setting

    def _leave_out(
        self,
        setting: Setting,
        screen: Screen,
        base: RunConfig,
        imputer: RunConfig | None,
        environments: tuple[str, ...],
    ) -> None:
        _refuse_one_environment(setting.fold, environments)
        for seed, without in itertools.product(self.plan.file.seeds_of_loto, environments):
            left_out = _without(base, setting.fold, without)
            setting.left_out[seed, without] = self._add(left_out, screen, imputer, seed)

    def _nest(
        self, setting: Setting, entry: Entry, screen: Screen, imputer: RunConfig | None
    ) -> None:
        """Add the runs without pairs of groups; a pair that leaves too little to train on is none.

        All of them have the first seed.
        """
        file = self.plan.file
        data = configured(self.path, file, setting.entry, entry, setting.values).data
        for pair in self._beside(screen, data, setting.fold):
            try:
                own, _ = on_fold(
                    self.path, file, setting.entry, entry, setting.values, screen, pair.fold
                )
                trial = own.model_copy(update={"options": own.options.of_trials})
                base = _without(trial, *pair)
                posed = self._folds.pose(screen, base.data)
            except UserError:
                continue
            if len(posed.environments) < methods.load(base.method).ENVIRONMENTS:
                continue
            base = sampler_for(base, posed.label_rows, posed.train_rows)
            setting.nested[pair] = self._add(base, screen, imputer, file.seeds[0])

    def _beside(self, screen: Screen, data: DataOptions, fold: str) -> list[Pair]:
        key = screen.path, data.model_dump_json(), fold
        if key not in self._pairs:
            self._pairs[key] = pairs(screen, data, fold)
        return self._pairs[key]

    def _add(self, base: RunConfig, screen: Screen, imputer: RunConfig | None, seed: int) -> str:
        """The name of the run of a seed; with it the run that it needs becomes part of the plan."""
        fold, without = base.data.fold, base.data.without

        def job(config: RunConfig, needs: str | None = None) -> Job:
            config = _without(config, fold, without).model_copy(update={"seed": seed})
            made = _job(screen, config, needs)
            return self.plan.jobs.setdefault(made.name, made)

        return job(base, None if imputer is None else job(imputer).name).name

    def _imputer(self, name: str, entry: Entry, base: RunConfig) -> RunConfig | None:
        """The configuration, on no fold yet, of what an entry of the configuration `base` needs."""
        if entry.intervene is None:
            return None
        file = self.plan.file
        where, wanted = f"{self.path}: methods.{name}", entry.intervene
        if wanted not in file.methods:
            hint = did_you_mean(wanted, list(file.methods))
            raise UserError(f"{where}: intervene names {wanted!r}, which is no entry; {hint}")
        other = file.methods[wanted]
        method = other.method or wanted
        if other.intervene is not None or method not in imputing_methods():
            raise UserError(
                f"{where}: intervene names {wanted!r}, which cannot impute; name an entry of one "
                f"of {', '.join(imputing_methods())}"
            )
        refuse_standardised(base.data, where)
        if base.intervention.relative_style is not None:
            refuse_absolute(method, where)
        if other.search is not None:
            raise UserError(
                f"{where}: intervene names {wanted!r}, which has {other.search.trials} trials; "
                "expected one setting, give it no search"
            )
        every = list(points(self.path, file, wanted, other))
        if len(every) > 1:
            raise UserError(
                f"{where}: intervene names {wanted!r}, which has {len(every)} settings; expected "
                "one, give it no grid"
            )
        found = configured(self.path, file, wanted, other, every[0])
        refuse_standardised(found.data, where)
        return found


def _refuse_one_environment(fold: str, environments: Sequence[str]) -> None:
    if len(environments) < 2:
        raise UserError(
            f"select loto: fold {fold} trains on {len(environments)} environment; "
            "expected 2 or more, select by accuracy or loss"
        )


def _without(config: RunConfig, fold: str, without: str | None) -> RunConfig:
    data = config.data.model_copy(update={"fold": fold, "without": without})
    return config.model_copy(update={"data": data})


def _job(screen: Screen, config: RunConfig, needs: str | None = None) -> Job:
    if needs is not None:
        config = intervening(config, Path("runs") / needs)
    identity = json.dumps([screen.identity, config.model_dump(mode="json")], sort_keys=True)
    name = f"{config.method}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return Job(name, screen.place, screen.identity, config, needs)
