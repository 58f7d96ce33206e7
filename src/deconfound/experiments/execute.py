"""One runner of every experiment: missing runs, chains of the settings taken, one table."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import pandas as pd

from deconfound.experiments.overhead import Summary, summarise
from deconfound.experiments.plan import Job, Plan, Setting
from deconfound.experiments.running.chain import Task, embedded, tasks_text, waiting
from deconfound.experiments.running.executors import ExecutorOptions
from deconfound.experiments.running.followed import prepare_tracker
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.experiments.search import search
from deconfound.experiments.select import Choice, Result, choose, read_result
from deconfound.experiments.table import long_table, score_table
from deconfound.files import atomic, seal
from deconfound.runtime.device import available_cores
from deconfound.runtime.escaping import csv_text
from deconfound.runtime.progress import Progress
from deconfound.runtime.stop import Abandoned, Stopped

View = TypeVar("View")
SELDOM = 10
"""Renewals wait this many times as long as the last one took."""


@dataclass(frozen=True)
class Done:
    """What an experiment has reached."""

    results: dict[str, Result]
    """By name of the run."""
    choices: list[Choice]
    scores: pd.DataFrame
    """The long table; see `table.long_table`."""

    def taken(self) -> list[Setting]:
        """One setting of each entry and fold: that of the first rule that took one."""
        found: dict[tuple[str, Path, str], Setting] = {}
        for choice in self.choices:
            if choice.setting is not None:
                found.setdefault(_place(choice.setting), choice.setting)
        return list(found.values())


@dataclass(frozen=True)
class Call:
    """How one call of `execute` is made."""

    executors: ExecutorOptions
    quiet: bool = False
    embeddings: bool = False
    """Whether the runs of the settings taken are embedded as well."""
    tracker: str = ""
    """The tracker that follows every run, as `shared_tracker` gives it; empty for none."""
    began: float = field(default_factory=time.time)
    """The time that the summary counts from, in seconds since the epoch."""
    until: float | None = None
    """When no further run is begun and those under way are saved, in seconds since the epoch."""
    renew: Callable[[Plan, "Done", Path], None] | None = None
    """What is done after a run has ended, with all that is reached by then; not more often than
    takes a tenth of the time."""


def execute(
    plan: Plan, out: Path, view: Callable[[Plan, Done, Path], View], call: Call
) -> tuple[View, Summary]:
    """Do every run of the plan that the directory `out` does not hold yet, and its chains.

    Settings are searched, one is taken for each entry and rule, and the chains of those taken are
    done; each run is scored when it ends. Writes scores.parquet, loto.parquet, failures.csv, what
    `view` writes of them, and summary.json. A run that fails does not stop the others; the next
    call tries it again. Raises Stopped on SIGTERM and Ctrl-C, when runs under way are saved, and
    UserError for a tracker that cannot be opened.
    """
    if call.tracker:
        prepare_tracker(call.tracker)
    jobs: list[Job] = []
    rounds = _Rounds(plan, out, call, jobs)
    search(plan, out, rounds.do_trials)
    jobs += plan.search() if call.until is None else plan.alternating(plan.search())
    places = Counter(map(_place, plan.settings))
    taken = [one for one in plan.settings if places[_place(one)] == 1]
    rounds.do(jobs, taken, "search" if len(jobs) < len(plan.jobs) else "")
    choices = choose(plan, rounds.results(jobs))
    taken = [one.setting for one in choices if one.setting is not None]
    searched = {job.name for job in jobs}
    of_taken = {name for setting in taken for name in setting.runs.values()}
    chosen = [job for name, job in plan.jobs.items() if name in of_taken - searched]
    chained = {n for setting in taken if plan.tasks(setting) for n in setting.runs.values()}
    more = chained | {job.name for job in chosen}
    if more:
        rounds.do([plan.jobs[name] for name in plan.jobs if name in more], taken, "chosen settings")
    jobs += chosen
    ended = time.time()
    results = rounds.results(jobs)
    _write_failures(plan, rounds.outcomes, out)
    done = Done(results, choices, _write_scores(plan, results, taken, out))
    seen = view(plan, done, out)
    tried = results.keys() | {one.name for one in rounds.outcomes}
    left = sum(job.name not in tried for job in jobs)
    summary = summarise(len(jobs), rounds.rounds, call.began, ended, left)
    about = asdict(summary) | {"overhead": summary.overhead}
    atomic.write_text(out / "summary.json", json.dumps(about, indent=2))
    for setting in taken if call.embeddings else ():
        for name in results.keys() & setting.runs.values():
            embedded(out, name, setting.screen, device="auto", threads=None)
    return seen, summary


def _place(setting: Setting) -> tuple[str, Path, str]:
    """What the settings of one entry's grid share."""
    return setting.entry, setting.screen, setting.fold


class _Rounds:
    """Rounds of runs, each begun when the one before has ended."""

    def __init__(self, plan: Plan, out: Path, call: Call, jobs: Sequence[Job]) -> None:
        self._plan, self._out, self._call, self._jobs = plan, out, call, jobs
        self._renewed, self._renewing = 0.0, 0.0
        self.rounds: list[list[Outcome]] = []

    def _renew(self) -> None:
        began = time.time()
        if self._call.renew is None or began - self._renewed < SELDOM * self._renewing:
            return
        results = self.results(self._jobs)
        choices = choose(self._plan, results)
        taken = [one.setting for one in choices if one.setting is not None]
        scores = long_table(self._plan, results, taken, self._out)
        if len(scores):
            self._call.renew(self._plan, Done(results, choices, scores), self._out)
        self._renewed = time.time()
        self._renewing = self._renewed - began

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all rounds."""
        return [outcome for of_round in self.rounds for outcome in of_round]

    def results(self, jobs: Sequence[Job]) -> dict[str, Result]:
        """Of the jobs that are trained and scored."""
        found = {job.name: read_result(self._out, job) for job in jobs}
        return {name: result for name, result in found.items() if result is not None}

    def do(self, jobs: Sequence[Job], taken: Sequence[Setting], part: str) -> None:
        """Do what waits of `jobs`, and the chains of the settings `taken` among them.

        `part` says which of the experiment's jobs they are, if not all. Raises Stopped when a
        signal ends them.
        """
        tasks: dict[str, list[Task]] = {}
        for setting in taken:
            for name in setting.runs.values():
                tasks.setdefault(name, []).extend(self._plan.tasks(setting))
            for name in setting.nested.values():
                tasks.setdefault(name, self._plan.nested_tasks(setting))
        failed = {one.name for one in self.outcomes if one.reason}
        open_jobs = [
            job
            for job in jobs
            if job.name not in failed
            and (
                read_result(self._out, job) is None
                or waiting(tasks.get(job.name, []), self._out, job.name)
            )
        ]
        names = {job.name for job in open_jobs}
        done = len(jobs) - len(open_jobs)
        first = [job for job in open_jobs if job.needs not in names]
        later = [job for job in open_jobs if job.needs in names]
        for group in filter(None, (first, later)):
            orders = [self._order(job, tasks.get(job.name, [])) for job in group]
            self._do_together(group, orders, len(jobs), done, part)
            done += sum(not one.reason for one in self.rounds[-1])

    def do_trials(self, settings: Sequence[Setting], part: str) -> dict[str, Result]:
        """Do the runs that settings are compared by; the results of those that have ended."""
        jobs = self._plan.search(settings)
        self.do(jobs, [], part)
        return self.results(jobs)

    def _order(self, job: Job, tasks: Sequence[Task]) -> Order:
        out = str(self._out.resolve())
        config = job.config_in(self._out).model_dump_json()
        method, chains = job.config.method, tasks_text(tasks)
        return Order(
            job.name, str(job.screen), job.identity, method, config, out, chains,
            self._call.tracker,
        )  # fmt: skip

    def _do_together(
        self, jobs: Sequence[Job], orders: list[Order], total: int, done: int, part: str
    ) -> None:
        training = [job.config.training for job in jobs]
        threads = max(one.threads or available_cores() for one in training)
        running = self._call.executors.run(
            orders, threads=threads, devices={t.device for t in training}
        )
        outcomes: list[Outcome] = []
        self.rounds.append(outcomes)
        title = f"{self._out.name}, {part}" if part else self._out.name
        try:
            with (
                Progress(title, total, "runs", done, self._call.quiet) as progress,
                contextlib.closing(running),
            ):
                for outcome in running:
                    outcomes.append(outcome)
                    failed = sum(bool(one.reason) for one in outcomes)
                    progress.update(1, f"{failed} failed" if failed else "")
                    self._renew()
                    if self._call.until is not None and time.time() > self._call.until:
                        break
        except KeyboardInterrupt as request:
            ready = done + sum(not one.reason for one in outcomes)
            of = f" of the {part}" if part else ""
            abandoned = isinstance(request, Abandoned)
            saved = self._call.executors.saves and not abandoned
            kept = "are saved" if saved else "go on from their last checkpoint"
            raise (Abandoned if abandoned else Stopped)(
                f"{self._out}: {ready} of {total} runs{of} done, those under way {kept}; "
                "the same command resumes"
            ) from None


def _write_failures(plan: Plan, outcomes: Sequence[Outcome], out: Path) -> None:
    failures = []
    for outcome in outcomes:
        config = plan.jobs[outcome.name].config
        about = {"run": outcome.name, "fold": config.data.fold, "without": config.data.without}
        failures.append(about | {"seed": config.seed, "reason": outcome.reason})
    columns = ["run", "fold", "without", "seed", "reason"]
    failed = pd.DataFrame([one for one in failures if one["reason"]], columns=columns)
    atomic.write_text(out / "failures.csv", csv_text(failed))


def _write_scores(
    plan: Plan, results: dict[str, Result], taken: list[Setting], out: Path
) -> pd.DataFrame:
    """Write scores.parquet and, where environments were left out in turn, loto.parquet."""
    left_out = [name for name, job in plan.jobs.items() if job.config.data.without is not None]
    without = score_table(results[name] for name in left_out if name in results)
    scores = long_table(plan, results, taken, out)
    for file, table in (("scores", scores), ("loto", without)):
        if len(table) or file == "scores":
            seal.write_frame(out / f"{file}.parquet", table)
    return scores
