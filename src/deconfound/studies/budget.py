"""How many groups, seeds and steps a study takes, so that it ends in the minutes it was given."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from deconfound.experiments.execute import Call
from deconfound.experiments.nested import NEIGHBOURS
from deconfound.experiments.plan import Plan
from deconfound.experiments.running.chain import tasks_text
from deconfound.experiments.running.messages import Order
from deconfound.files import atomic

FILE = "budget.json"
TIMED_STEPS = (10, 30)
"""Steps of the two short runs of each method that say what a step takes and what a run does."""
FEWEST_STEPS = 50
RESERVE = 0.15
"""Share of the minutes that is kept for tables, pages and the recommended run."""


class Size(NamedTuple):
    """What is cut to fit: groups held out at each level (None for all), seeds, share of steps."""

    groups: int | None
    seeds: int
    share: float


SIZES = (
    Size(None, 3, 1.0), Size(None, 2, 1.0), Size(6, 2, 1.0), Size(4, 2, 1.0), Size(4, 2, 0.5),
    Size(3, 2, 0.5), Size(3, 2, 0.25), Size(3, 2, 0.1), Size(3, 1, 0.25), Size(3, 1, 0.1),
    Size(2, 1, 0.1), Size(1, 1, 0.1), Size(1, 1, 0.03),
)  # fmt: skip
"""What is tried, the most first: groups are cut before steps, and the second seed is cut late."""


@dataclass(frozen=True)
class Cost:
    """What a run of one entry takes on this machine, in seconds."""

    run: float
    """Beside its steps: opening, scoring, corrections."""
    step: float
    steps: int
    """Steps of a run that nothing is cut of."""

    def seconds(self, share: float) -> float:
        """Of one run with this share of its steps."""
        return self.run + self.step * steps_of(self.steps, share)


def steps_of(steps: int, share: float) -> int:
    """A share of the steps, but no fewer than 50 unless there are fewer."""
    return max(min(steps, FEWEST_STEPS), round(steps * share))


@dataclass(frozen=True)
class Estimate:
    """What a budget buys."""

    minutes: float
    size: Size
    costs: dict[str, Cost]
    """Of each entry."""
    runs: int
    estimated_minutes: float
    fits: bool
    """Whether even the estimate is within the budget; the last size of all is taken otherwise."""

    def steps(self) -> dict[str, int]:
        """Steps of a run of each entry, of which nothing is cut."""
        return {entry: cost.steps for entry, cost in self.costs.items()}

    def text(self) -> str:
        """One sentence for the terminal."""
        groups, seeds, share = self.size
        held = "all groups" if groups is None else f"{groups} groups of a level"
        about = f"{held}, {seeds} seed{'s' * (seeds > 1)}, {share:.0%} of the steps"
        late = "" if self.fits else ", which is more: what is not done by then is left out"
        return (
            f"budget of {self.minutes:g} minutes: {about}; {self.runs} runs of about "
            f"{self.estimated_minutes:.1f} minutes together{late}"
        )


def choose_size(
    costs: dict[str, Cost],
    groups: Sequence[tuple[int, int]],
    minutes: float,
    workers: int,
    most_seeds: int,
    spent: float = 0.0,
) -> Estimate:
    """The first of `SIZES` that fits what is left of `minutes`; the last one if none does.

    `groups` are of each level those that are to be held out, and all that can be. `spent` are the
    seconds that are no longer there for runs.
    """
    seconds = 60 * minutes * (1 - RESERVE) - spent
    found: list[Estimate] = []
    for size in _sizes(most_seeds):
        runs = [_runs(held, every, size) for held, every in groups]
        each = sum(cost.seconds(size.share) for cost in costs.values())
        last = max(cost.seconds(size.share) for cost in costs.values())  # the one to use
        total = sum(runs) * each / max(1, workers) + last
        made = Estimate(minutes, size, costs, sum(runs) * len(costs), total / 60, total <= seconds)
        if made.fits:
            return made
        found.append(made)
    return found[-1]


def _sizes(most_seeds: int) -> list[Size]:
    """`SIZES` with no more seeds than were asked for, all of them in those that cut none."""
    most = max(size.seeds for size in SIZES)
    capped = [
        size._replace(seeds=most_seeds if size.seeds == most else min(size.seeds, most_seeds))
        for size in SIZES
    ]
    return list(dict.fromkeys(capped))


def _runs(held_out: int, groups: int, size: Size) -> int:
    """Runs of one entry at one level: of each group and seed, and without pairs of groups."""
    held = min(held_out, size.groups or held_out)
    beside = min(2 * NEIGHBOURS, groups - 1)
    pairs = held * beside if groups > 2 else 0
    if held == groups or beside == groups - 1:  # two held-out groups share one
        pairs -= held * min(beside, held - 1) // 2 if pairs else 0
    return held * size.seeds + pairs


class Measured(NamedTuple):
    """What short runs say."""

    costs: dict[str, Cost]
    """Of each entry."""
    workers: int
    """How many runs are done at a time."""
    start: float
    """Seconds until the first run begins."""


def measured_costs(plan: Plan, out: Path, call: Call) -> Measured:
    """Time two short runs of each entry of a plan, those of its first fold.

    They go into `out/timing`, which is removed.
    """
    folder = out / "timing"
    atomic.discard(folder)  # runs of a killed call would take no time
    orders: list[Order] = []
    timed: dict[str, tuple[str, int]] = {}  # entry and steps of each short run
    for setting in plan.settings:
        known = {entry for entry, _ in timed.values()}
        if setting.fold != plan.settings[0].fold or setting.entry in known:
            continue
        job = plan.jobs[next(iter(setting.runs.values()))]
        tasks = plan.nested_tasks(setting)  # corrections take their time of every run
        if job.needs is not None:
            job, tasks = plan.jobs[job.needs], []  # its own steps cost about as much
        for steps in TIMED_STEPS:
            name = f"{job.config.method}-{len(orders)}"
            training = job.config.training.model_copy(
                update={"steps": steps, "warmup_steps": 0, "validate_every": steps}
            )
            config = job.config.model_copy(
                update={"training": training, "options": job.config.options.of_trials}
            )
            text, place = config.model_dump_json(), str(folder.resolve())
            chains = tasks_text(tasks)
            orders.append(
                Order(name, str(job.screen), job.identity, config.method, text, place, chains)
            )
            timed[name] = setting.entry, steps
    took: dict[str, list[tuple[int, float]]] = {}
    devices = {job.config.training.device for job in plan.jobs.values()}
    workers, firsts, began = set(), [], time.time()
    for outcome in call.executors.run(orders, threads=1, devices=devices):
        workers.add(outcome.worker)
        firsts.append(outcome.started)
        entry, steps = timed[outcome.name]
        took.setdefault(entry, []).append((steps, outcome.ended - outcome.started))
    atomic.discard(folder)
    asked = steps_asked(plan)
    costs = {entry: _cost(times, asked[entry]) for entry, times in took.items()}
    return Measured(costs, len(workers), max(0.0, min(firsts, default=began) - began))


def steps_asked(plan: Plan) -> dict[str, int]:
    """Steps of a run of each entry of a plan."""
    return {
        one.entry: plan.jobs[next(iter(one.runs.values()))].config.training.steps
        for one in plan.settings
    }


def _cost(times: list[tuple[int, float]], steps: int) -> Cost:
    (few, short), (many, long) = sorted(times)
    step = max(long - short, 1e-3 * long) / (many - few)
    return Cost(max(0.0, short - few * step), step, steps)


def write_estimate(out: Path, estimate: Estimate) -> None:
    """Keep an estimate, so that a resumed study has the same size."""
    atomic.write_text(out / FILE, json.dumps(asdict(estimate), indent=2))


def read_estimate(out: Path, minutes: float) -> Estimate | None:
    """The estimate that a study was begun with; None if it had another budget, or none."""
    file = out / FILE
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["minutes"] != minutes:
        return None
    costs = {name: Cost(**cost) for name, cost in found["costs"].items()}
    return Estimate(**(found | {"size": Size(*found["size"]), "costs": costs}))


def deadline(began: float, minutes: float) -> float:
    """When no further run is begun, in seconds since the epoch."""
    return max(time.time(), began + 60 * minutes * (1 - RESERVE))
