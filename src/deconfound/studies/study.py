"""A study: methods on held-out groups of one screen, chosen without them, and a verdict."""

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from deconfound.config import flags_of, validated
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen
from deconfound.experiments.execute import Call, execute
from deconfound.experiments.held_out import Folds
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.chain import Chain
from deconfound.experiments.words import read_rows
from deconfound.files import atomic
from deconfound.intervention.source_run import imputing_methods
from deconfound.runs.recommended import LEARNING_RATE, RECOMMENDED, TRAINING, TURNED, recommend
from deconfound.runtime.escaping import csv_text
from deconfound.studies import budget
from deconfound.studies.comparison import Changes, CompareOptions, Comparison
from deconfound.studies.groups import chosen_folds, groups_of
from deconfound.studies.judge import PAGE, VERDICT, Judge
from deconfound.studies.levels import SEEDS, plan_values, refuse_unknown_controls
from deconfound.studies.recommended import write_recommended
from deconfound.studies.source import refuse_other

MARKER = "study.yaml"
BASELINE = "erm"
METHODS = (BASELINE, RECOMMENDED, "scbd")
WITH_CONTROLS, WITHOUT_CONTROLS = "erm+tvn+knn", "erm+standardise+knn"
"""The correction after training that fits a screen with negative controls, and any other."""


def compare_study(
    screen: Screen, out: Path, options: CompareOptions, intervention: Mapping[str, Any], call: Call
) -> Comparison:
    """Hold out every group asked for, choose for each one without it, and judge what was chosen.

    Writes study.yaml, folds.csv, runs.csv, the files of `execute`, verdict.json, the page
    report.html, which stands after the first run and is renewed, and the run to use in
    `recommended`. Another call goes on where this one was stopped. Raises UserError for an unknown
    method, level or group, if `out` holds something else, if nothing can be held out, and if every
    run failed.
    """
    wanted = options.methods or default_methods(screen, options)
    chains, entries = read_rows(_baseline_first(wanted), options.knn)
    entries = {
        name: _as_the_recipe(entry, name, screen, options) for name, entry in entries.items()
    }
    refuse_other(out, MARKER, "study")
    refuse_unknown_controls(screen, options, intervention)
    command = _command(screen, options, intervention)
    said: list[str] = []
    posed = Folds()
    with atomic.locked(out):
        if options.budget is not None:
            plan, _ = _plan(screen, entries, chains, options, intervention, posed)
            size, costs, said = _fitted(plan, out, options, call)
            call = replace(call, until=budget.deadline(call.began, options.budget))
            most = [one for one in (size.groups, options.folds_per_level) if one is not None]
            seeds = (options.seeds or SEEDS)[: size.seeds]
            options = options.model_copy(
                update={"folds_per_level": min(most, default=None), "seeds": seeds}
            )
            for name, cost in costs.items():
                steps = {"steps": budget.steps_of(cost.steps, size.share)}
                training = entries[name].get("training", {}) | steps
                entries[name] = entries[name] | {"training": training}
        plan, folds = _plan(screen, entries, chains, options, intervention, posed)
        _write_plan(plan, out)
        atomic.write_text(out / "folds.csv", csv_text(folds))
        atomic.write_text(out / "runs.csv", csv_text(_runs(plan)))
        names = tuple(chain.name for chain in plan.chains)
        judge = Judge(screen, options, names, folds, command)
        call = replace(call, renew=judge.renew)
        verdict, summary = execute(plan, out, judge.write, call)
        folder = write_recommended(plan, verdict.recommended, out, call.quiet)
        judge.page(out)
    said += [*verdict.lines(), f"trained on all groups: {folder}"]
    return Comparison(pd.DataFrame(), said, summary, out / PAGE, verdict)


def _as_the_recipe(
    entry: dict[str, Any], name: str, screen: Screen, options: CompareOptions
) -> dict[str, Any]:
    """An entry that trains as the recommended recipe does, unless it has a configuration.

    The same learning rate, schedule and turned images for all, so that methods alone differ. A
    method that imputes keeps its own.
    """
    method = entry.get("method", name)
    if "config" in entry or method in imputing_methods():
        return entry
    augment = options.augment or ("none" if screen.holds_profiles else TURNED["augment"])
    given: dict[str, Any] = {"learning_rate": LEARNING_RATE}
    if method in (BASELINE, "scbd") and not screen.holds_profiles:
        given["norm"] = "instance"  # holds up better than batch normalisation on pixels as stored
    if method == "scbd":
        given["decoder"] = "none"  # it changes no score
    return entry | {"training": TRAINING | {"augment": augment}, "options": given}


def _command(screen: Screen, options: CompareOptions, intervention: Mapping[str, Any]) -> str:
    """What makes the study again of its screen, but for --out, as a shell reads the words.

    A tracker changes nothing of it, so it is left out.
    """
    changes = validated(Changes, intervention, "compare")
    words = ["deconfound", "compare", str(screen.path)]
    of_source = {"images_root": None, "cells": None, "seed": 0, "tracker": None}
    return shlex.join([*words, *flags_of(options, of_source), *flags_of(changes)])


def _baseline_first(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words with ERM before all others, which it is added to where it lacks."""
    own = [word for word in words if word.partition("=")[0] == BASELINE]
    return (*(own or [BASELINE]), *(word for word in words if word not in own))


def _plan(
    screen: Screen,
    entries: dict[str, dict[str, Any]],
    chains: list[Chain],
    options: CompareOptions,
    intervention: Mapping[str, Any],
    posed: Folds,
) -> tuple[Plan, pd.DataFrame]:
    """The plan, and what is held out and what not."""
    folds = chosen_folds(screen, options, posed)
    held_out = folds.loc[folds["held_out"], "fold"].tolist()
    values = plan_values(screen.path, entries, held_out, options, intervention)
    values |= {"folds": held_out, "choose": True, "chains": [chain.word for chain in chains]}
    values |= {"knn": options.knn, "measure": held_out[:1]}
    if any(chain.correction == "standardise" for chain in chains):
        values["corrections"] = {"standardise": {"by": "all"}}
    file = validated(PlanFile, values, "compare")
    return make_plan(Path("compare"), file, posed, max_runs=options.max_runs), folds


def _write_plan(plan: Plan, out: Path) -> None:
    """Write the plan; of another plan no verdict, page or scores stay, until a run of this ends."""
    values = plan.file.model_dump(mode="json", exclude_defaults=True)
    text, file = yaml.safe_dump(values, sort_keys=False), out / MARKER
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        for name in (VERDICT, PAGE, "scores.parquet"):
            atomic.discard(out / name)
    atomic.write_text(file, text)


def _fitted(
    plan: Plan, out: Path, options: CompareOptions, call: Call
) -> tuple[budget.Size, dict[str, budget.Cost], list[str]]:
    """What the budget buys: that of an earlier call with these entries, or what short runs say."""
    assert options.budget is not None
    estimate = budget.read_estimate(out, options.budget)
    if estimate is None or budget.steps_asked(plan) != estimate.steps():
        found = budget.measured_costs(plan, out, call)
        (screen,) = plan.screens.values()
        folds = list(dict.fromkeys(setting.fold for setting in plan.settings))
        levels = Counter(fold.partition("=")[0] for fold in folds)
        there = groups_of(screen, roles_of(screen, options.data), set(levels))
        every = Counter(fold.partition("=")[0] for fold in there)
        held = [(count, every[level]) for level, count in levels.items()]
        spent = time.time() - call.began + found.start
        estimate = budget.choose_size(
            found.costs, held, options.budget, found.workers, len(options.seeds or SEEDS), spent
        )
        budget.write_estimate(out, estimate)
    return estimate.size, estimate.costs, [estimate.text()]


def _runs(plan: Plan) -> pd.DataFrame:
    """Every run of a plan: its name, entry, fold, the group left out beside it, and seed."""
    rows: dict[str, dict[str, Any]] = {}
    for setting in plan.settings:
        about = {"entry": setting.entry, "fold": setting.fold, "measured": bool(setting.measured)}
        for seed, name in setting.runs.items():
            rows.setdefault(name, {"run": name} | about | {"without": "", "seed": seed})
        for pair, name in setting.nested.items():
            beside = {"fold": pair.fold, "without": pair.without, "seed": plan.file.seeds[0]}
            rows.setdefault(name, {"run": name} | about | beside | {"measured": False})
    return pd.DataFrame(list(rows.values()))


def default_methods(screen: Screen, options: CompareOptions) -> tuple[str, ...]:
    """ERM, the recommended recipe, SCBD, and the correction that fits the screen's controls."""
    alike = recommend(screen, options.data).config.data
    controls = alike.standardise_by is not None and alike.standardise_with == "controls"
    return (*METHODS, WITH_CONTROLS if controls else WITHOUT_CONTROLS)
