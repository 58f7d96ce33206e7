"""What is chosen for each held-out group without a look at it, among the chains of a plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deconfound.evaluation.scores import read_scores
from deconfound.experiments.plan import Plan, Setting
from deconfound.experiments.running.chain import Chain, Task
from deconfound.experiments.select import Result

METRIC = "macro_f1"
ID_LOSS = 0.01
"""What a chain may lose in distribution, macro-F1, where no other groups can be left out."""


@dataclass(frozen=True)
class Chosen:
    """The chain chosen for one held-out group."""

    fold: str
    name: str
    scores: dict[str, float]
    """By name of the chain: mean macro-F1 of the groups left out beside the held-out one, or in
    distribution where none was."""
    groups: tuple[str, ...]
    """The groups left out beside it, of which every chain in `scores` has a score."""
    lacking: tuple[str, ...] = ()
    """Chains that took no part, as a run that they are chosen by is not done or failed."""


def choose_chains(
    plan: Plan, taken: Sequence[Setting], results: Mapping[str, Result], out: Path, baseline: str
) -> list[Chosen]:
    """One chain for each held-out fold of a plan with `choose`, by runs that trained without it.

    The chain with the highest mean macro-F1 over the groups that were left out of training beside
    the held-out one; of equal ones the first. Where no group was, as the level has two groups: the
    chain after the baseline, if in distribution it loses at most 0.01 to the baseline, and else the
    baseline. A chain without a score of a group that the baseline has one of takes no part. Folds
    whose baseline has no score are left out, and those whose runs that choose are not done.
    """
    found = []
    for fold in dict.fromkeys(one.fold for one in taken if "=" in one.fold):
        of_fold = {one.entry: one for one in taken if one.fold == fold}
        planned = {one.entry: one for one in plan.settings if one.fold == fold}
        scored = {
            chain.name: _of_groups(chain, of_fold[chain.entry], results, out)
            for chain in plan.chains
            if chain.entry in of_fold
        }
        groups = tuple(scored.get(baseline, {}))
        if groups:
            means = {
                name: float(np.mean([of_group[group] for group in groups]))
                for name, of_group in scored.items()
                if of_group.keys() >= set(groups)
            }
            able = [one.name for one in plan.chains if _beside(planned[one.entry], groups)]
            found.append(_chosen(fold, max(means, key=means.__getitem__), means, groups, able))
            continue
        first = planned[next(one.entry for one in plan.chains if one.name == baseline)]
        if any(run not in results for run in first.nested.values()):
            continue
        inside = {
            chain.name: _in_distribution(of_fold[chain.entry], results)
            for chain in plan.chains
            if chain.entry in of_fold and not chain.is_post_hoc
        }
        inside = {name: value for name, value in inside.items() if not math.isnan(value)}
        if baseline in inside:
            able = [one.name for one in plan.chains if not one.is_post_hoc]
            found.append(_chosen(fold, _kept(inside, baseline), inside, (), able))
    return found


def _chosen(
    fold: str, name: str, scores: dict[str, float], groups: tuple[str, ...], able: list[str]
) -> Chosen:
    return Chosen(fold, name, scores, groups, tuple(one for one in able if one not in scores))


def _beside(setting: Setting, groups: tuple[str, ...]) -> bool:
    """Whether a setting has a run for each of the groups left out beside its fold."""
    return {pair.other(setting.fold) for pair in setting.nested} >= set(groups)


def _kept(inside: dict[str, float], baseline: str) -> str:
    following = next((name for name in inside if name != baseline), baseline)
    return following if inside[following] >= inside[baseline] - ID_LOSS else baseline


def _of_groups(
    chain: Chain, setting: Setting, results: Mapping[str, Result], out: Path
) -> dict[str, float]:
    """Macro-F1 of each group left out beside the setting's fold, where there is a score."""
    values = {}
    for pair, run in setting.nested.items():
        if run not in results:
            continue
        part = pair.part_of_other(setting.fold)
        values[pair.other(setting.fold)] = (
            _of_file(Task(chain, False).file(out, run), part)
            if chain.is_post_hoc
            else results[run].value(part, METRIC)
        )
    return {group: value for group, value in values.items() if not math.isnan(value)}


def _of_file(file: Path, part: str) -> float:
    if not file.is_file():
        return math.nan
    scores = read_scores(file)
    row = scores[(scores["metric"] == METRIC) & (scores["part"] == part)]
    return float(row["value"].iloc[0]) if len(row) else math.nan


def _in_distribution(setting: Setting, results: Mapping[str, Result]) -> float:
    done = [results[name] for name in setting.runs.values() if name in results]
    return float(np.mean([one.value("id_test", METRIC) for one in done])) if done else math.nan
