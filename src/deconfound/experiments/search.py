"""Searches by trials: a batch of every search is proposed and run, and its results are told."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from deconfound.experiments.plan import Plan, Setting
from deconfound.experiments.select import Result, criterion
from deconfound.experiments.trials import Trials, opened

FILE = "optuna.db"
"""The trials of an experiment's searches, in its directory."""


def search(
    plan: Plan, out: Path, do: Callable[[Sequence[Setting], str], dict[str, Result]]
) -> None:
    """Do all trials of the plan's searches, whose settings become part of the plan.

    `do` does the runs that settings are compared by and returns the results of those that have
    ended; it is told which part of the search they are. A trial is judged by the plan's first rule;
    one with a run that failed stays open and counts as a bad one. Raises UserError if the storage
    of the trials cannot be used, or holds those of another plan.
    """
    if not plan.searches:
        return
    rule = plan.file.select[0]
    with opened(out / FILE) as storage:
        every = [Trials(storage, out / FILE, one) for one in plan.searches]
        batches = max(one.options.batches for one in plan.searches)
        for number in range(batches):
            proposed = [(trials, one) for trials in every for one in trials.batch(number)]
            part = f"trials, batch {number + 1} of {batches}"
            results = do([setting for _, setting in proposed], part)
            for trials, setting in proposed:
                value = criterion(rule, setting, results)
                if not math.isnan(value):
                    trials.tell(setting, value)
