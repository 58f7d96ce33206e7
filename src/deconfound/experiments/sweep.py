"""sweep: methods × settings × folds × seeds, run in parallel, resumably, to one table."""

import contextlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from deconfound.errors import UserError
from deconfound.experiments.plan import Job, Plan, make_plan
from deconfound.experiments.running.local import run_local
from deconfound.experiments.running.messages import Order, Outcome, run_directory
from deconfound.experiments.running.ray import run_ray
from deconfound.experiments.select import Choice, Result, choose, read_result, score_table
from deconfound.experiments.table import make_table, write_table
from deconfound.files import atomic
from deconfound.runtime.device import available_cores
from deconfound.runtime.progress import Progress
from deconfound.runtime.stop import Stopped

ExecutorName = Literal["local", "ray"]


@dataclass(frozen=True)
class Summary:
    """What a call of sweep did, and where its time went."""

    runs: int
    """Runs of the sweep."""
    before: int
    """Of these, done before this call."""
    failed: int
    workers: int
    """Processes that did runs."""
    wall_seconds: float
    training_seconds: float
    """Steps, validation and waiting for batches, over all processes; the others likewise."""
    evaluation_seconds: float
    """Predicting, scoring and writing results."""
    preparation_seconds: float
    """Opening screens, making folds and networks, checkpoints, and runs that failed."""
    start_up_seconds: float
    """Planning, starting processes, handing out runs."""
    waiting_seconds: float
    """Processes without a run while the last runs end."""
    table_seconds: float

    @property
    def overhead(self) -> float:
        """Share of the time that is not training, processes that wait at the end left out."""
        other = self.evaluation_seconds + self.preparation_seconds
        other += self.start_up_seconds + self.table_seconds
        return other / (other + self.training_seconds) if self.workers else 0.0

    def text(self) -> str:
        """One line for the terminal."""
        runs = f"{self.runs} runs, {self.before} of them done before, {self.failed} failed"
        if not self.workers:
            return runs
        return (
            f"{runs}; {self.wall_seconds:.0f} s on {self.workers} at a time, overhead "
            f"{100 * self.overhead:.1f} %"
        )


def sweep(
    file: Path,
    out: Path,
    *,
    executor: ExecutorName = "local",
    workers: int | None = None,
    address: str | None = None,
    embeddings: bool = False,
    quiet: bool = False,
    started: float | None = None,
) -> Summary:
    """Do every run of the sweep file that `out` does not hold yet, then select and tabulate.

    A run that fails is listed in failures.csv and does not stop the others; the same call tries it
    again. With `embeddings` the runs that were selected are embedded as well. `started` is the
    time, in seconds since the epoch, that the summary counts from. Raises UserError for every
    mistake in the file, if `out` holds something else and if another process is sweeping into it;
    Stopped on SIGTERM and Ctrl-C, when runs under way are saved.
    """
    began = time.time() if started is None else started
    out = Path(out)
    plan = make_plan(file)
    if out.exists() and any(out.iterdir()) and not (out / "sweep.yaml").is_file():
        raise UserError(f"{out}: exists and is not a sweep; choose another --out")
    with atomic.locked(out):
        atomic.write_text(out / "sweep.yaml", Path(file).read_text(encoding="utf-8"))
        jobs = plan.search()
        part = "search" if len(jobs) < len(plan.jobs) else ""
        rounds = [_run_all(jobs, out, executor, workers, address, quiet, part)]
        choices = choose(plan, _results(jobs, out))
        if part:
            chosen, part = _not_searched(plan, jobs, choices), "chosen settings"
            rounds.append(_run_all(chosen, out, executor, workers, address, quiet, part))
            jobs += chosen
        ended = time.time()
        results = _results(jobs, out)
        outcomes = [outcome for of_round in rounds for outcome in of_round]
        _write(plan, results, choices, outcomes, out)
        summary = _summary(len(jobs), rounds, began, ended)
        atomic.write_text(
            out / "summary.json",
            json.dumps(asdict(summary) | {"overhead": summary.overhead}, indent=2),
        )
        if embeddings:
            _embed_selected(choices, results, out, quiet)
    return summary


def _not_searched(plan: Plan, searched: list[Job], choices: list[Choice]) -> list[Job]:
    """The runs of the settings chosen, by any rule, on the seeds that were not searched."""
    chosen = {name for one in choices if one.setting for name in one.setting.runs.values()}
    chosen -= {job.name for job in searched}
    return [job for name, job in plan.jobs.items() if name in chosen]


def _run_all(
    jobs: list[Job],
    out: Path,
    executor: ExecutorName,
    workers: int | None,
    address: str | None,
    quiet: bool,
    part: str = "",
) -> list[Outcome]:
    """The outcomes of all `jobs` that wait; `part` says which of a sweep's they are, if not all.

    Raises Stopped when a signal ends them.
    """
    waiting = [job for job in jobs if read_result(out, job) is None]
    if not waiting:
        return []
    names = {job.name for job in waiting}
    if later := [job for job in waiting if job.needs in names]:
        first = [job for job in waiting if job.needs not in names]
        given = out, executor, workers, address, quiet, part
        return _run_all(first, *given) + _run_all(later, *given)
    orders = [
        Order(
            job.name,
            str(job.screen),
            job.identity,
            job.config.method,
            job.config_in(out).model_dump_json(),
            str(out.resolve()),
        )
        for job in waiting
    ]
    threads = max(job.config.training.threads or available_cores() for job in waiting)
    running: Generator[Outcome, None, None]
    if executor == "ray":
        running = run_ray(orders, workers, threads, address)
    else:
        running = run_local(orders, workers or _processes(jobs, threads))
    outcomes: list[Outcome] = []
    done = len(jobs) - len(waiting)
    title = f"{out.name}, {part}" if part else out.name
    try:
        with (
            Progress(title, len(jobs), "runs", done, quiet) as progress,
            contextlib.closing(running),
        ):
            for outcome in running:
                outcomes.append(outcome)
                failed = sum(bool(one.reason) for one in outcomes)
                progress.update(1, f"{failed} failed" if failed else "")
    except KeyboardInterrupt:
        ready = done + sum(not one.reason for one in outcomes)
        of = f" of the {part}" if part else ""
        raise Stopped(
            f"{out}: {ready} of {len(jobs)} runs{of} done, those under way are saved; "
            "the same command resumes"
        ) from None
    return outcomes


def _processes(jobs: list[Job], threads: int) -> int:
    """As many as there are CUDA devices if runs may use them, else as cores hold `threads`."""
    devices = {job.config.training.device for job in jobs}
    if devices & {"auto", "cuda"} and torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, available_cores() // threads)


def _results(jobs: list[Job], out: Path) -> dict[str, Result]:
    found = {job.name: read_result(out, job) for job in jobs}
    return {name: result for name, result in found.items() if result is not None}


def _write(
    plan: Plan,
    results: dict[str, Result],
    choices: list[Choice],
    outcomes: list[Outcome],
    out: Path,
) -> None:
    """scores.parquet, loto.parquet, failures.csv and the table."""
    left_out = {name for name in results if plan.jobs[name].config.data.without is not None}
    for file, wanted in (("scores", results.keys() - left_out), ("loto", left_out)):
        if wanted or file == "scores":
            table = score_table(results[name] for name in plan.jobs if name in wanted)
            with atomic.atomic_file(out / f"{file}.parquet") as temporary:
                table.to_parquet(temporary)
    failures = [
        {
            "run": outcome.name,
            "fold": (data := plan.jobs[outcome.name].config.data).fold,
            "without": data.without,
            "seed": plan.jobs[outcome.name].config.seed,
            "reason": outcome.reason,
        }
        for outcome in outcomes
        if outcome.reason
    ]
    columns = ["run", "fold", "without", "seed", "reason"]
    failed = pd.DataFrame(failures, columns=columns)
    atomic.write_text(out / "failures.csv", failed.to_csv(index=False))
    write_table(make_table(plan, choices, results, out), out)


def _summary(runs: int, rounds: list[list[Outcome]], began: float, runs_ended: float) -> Summary:
    """Where the time went; the seconds add up to workers × wall time.

    Of `rounds` of runs, each begins when the one before has ended.
    """
    ended = time.time()
    rounds = [of_round for of_round in rounds if of_round]
    outcomes = [outcome for of_round in rounds for outcome in of_round]
    workers = len({one.worker for one in outcomes})
    busy = sum(one.ended - one.started for one in outcomes)
    training = sum(one.training for one in outcomes)
    evaluation = sum(one.evaluation for one in outcomes)
    waiting = 0.0
    for number, of_round in enumerate(rounds, 1):
        last = dict.fromkeys({one.worker for one in outcomes}, of_round[0].started)
        for one in of_round:
            last[one.worker] = max(one.ended, last[one.worker])
        until = max(last.values()) if number < len(rounds) else runs_ended
        waiting += sum(until - moment for moment in last.values())
    return Summary(
        runs=runs,
        before=runs - len(outcomes),
        failed=sum(bool(one.reason) for one in outcomes),
        workers=workers,
        wall_seconds=ended - began,
        training_seconds=training,
        evaluation_seconds=evaluation,
        preparation_seconds=busy - training - evaluation,
        start_up_seconds=workers * (runs_ended - began) - busy - waiting,
        waiting_seconds=waiting,
        table_seconds=workers * (ended - runs_ended),
    )


def _embed_selected(
    choices: list[Choice], results: dict[str, Result], out: Path, quiet: bool
) -> None:
    from deconfound.embeddings.embed import embed

    for choice in choices:
        for name in choice.setting.runs.values() if choice.setting else ():
            file = out / "embeddings" / f"{name}.h5ad"
            if name in results and not file.exists():
                embed(run_directory(out, name), choice.screen, file, quiet=quiet)
