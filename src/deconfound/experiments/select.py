"""Which setting of an entry is taken on a fold: by validation, or by environments left out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deconfound.experiments.plan import Job, Plan, Setting
from deconfound.experiments.plan_file import Rule
from deconfound.experiments.running.messages import stored_result


@dataclass(frozen=True)
class Result:
    """A run, trained and scored."""

    job: Job
    scores: list[dict[str, Any]]
    """metric, part, value, n and note of each."""
    validation_loss: float | None

    def value(self, part: str, metric: str) -> float:
        """A score; NaN where the part has no rows."""
        found = (s["value"] for s in self.scores if (s["part"], s["metric"]) == (part, metric))
        return float(next(found, math.nan))


@dataclass(frozen=True)
class Choice:
    """What was taken for an entry on one fold."""

    entry: str
    screen: Path
    fold: str
    rule: str
    """accuracy, loss or loto; "only setting" where there was nothing to choose."""
    setting: Setting | None
    """None if no setting has all the runs that the rule needs."""
    criterion: float
    """What the rule compared, of the setting taken."""
    finished: int
    """Settings that could be compared."""
    settings: int


def read_result(out: Path, job: Job) -> Result | None:
    """The result of a run; None if it has none that is whole."""
    found = stored_result(out, job.name)
    return None if found is None else Result(job, found["scores"], found["validation_loss"])


def choose(plan: Plan, results: dict[str, Result]) -> list[Choice]:
    """One choice for each entry, screen, fold and rule; `results` by name of the run.

    Scores are means over the seeds searched, and for loto over environments left out too. Of equal
    settings the first is taken. A setting takes part only with all the runs it is compared by.
    """
    groups: dict[tuple[str, Path, str], list[Setting]] = {}
    for setting in plan.settings:
        groups.setdefault((setting.entry, setting.screen, setting.fold), []).append(setting)
    found = []
    for key, settings in groups.items():
        if len(settings) == 1:
            whole = _finished(settings[0].searched(), results)
            taken = settings[0] if whole else None
            found.append(Choice(*key, "only setting", taken, math.nan, int(whole), 1))
            continue
        for rule in plan.file.select:
            found.append(_best(key, rule, settings, results))
    return found


def _best(
    key: tuple[str, Path, str], rule: Rule, settings: list[Setting], results: dict[str, Result]
) -> Choice:
    compared = [(setting, criterion(rule, setting, results)) for setting in settings]
    compared = [(setting, value) for setting, value in compared if not math.isnan(value)]
    if not compared:
        return Choice(*key, rule, None, math.nan, 0, len(settings))
    values = [value for _, value in compared]
    best = int(np.argmin(values) if rule == "loss" else np.argmax(values))
    return Choice(*key, rule, *compared[best], len(compared), len(settings))


def criterion(rule: Rule, setting: Setting, results: dict[str, Result]) -> float:
    """What a rule compares of a setting; NaN while a run that it is compared by has not ended."""
    left_out = list(setting.left_out.values()) if rule == "loto" else []
    if not _finished([*setting.searched(), *left_out], results):
        return math.nan
    if rule == "loto":
        accuracies = [results[name].value("ood_val", "accuracy") for name in left_out]
        return float(np.mean(accuracies))
    runs = [results[name] for name in setting.searched()]
    if rule == "accuracy":
        return float(np.mean([one.value("val", "accuracy") for one in runs]))
    losses = [math.nan if one.validation_loss is None else one.validation_loss for one in runs]
    return float(np.mean(losses))


def _finished(names: Iterable[str], results: dict[str, Result]) -> bool:
    return all(name in results for name in names)
