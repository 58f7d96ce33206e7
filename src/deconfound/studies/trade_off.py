"""The view of a trade-off: does accuracy in distribution cost accuracy outside it?

Makino et al., SCBD, section 4.1.2: SCBD can help where ERM shows the trade-off, over its learning
rates and lengths. The held-out labels are read, so this describes a screen and selects nothing.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from deconfound.config import validated
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.experiments.execute import Call, Done, execute
from deconfound.experiments.held_out import ALL_GROUPS
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.table import said_of_entries
from deconfound.experiments.verdict import FEWEST, FoldDiagnosis, Verdict, judge
from deconfound.files import atomic
from deconfound.runtime.escaping import csv_text
from deconfound.studies.comparison import CompareOptions, Comparison
from deconfound.studies.source import refuse_other

FORMAT_VERSION = 1
ERM, SCBD = "erm", "scbd"
SEEDS = (0, 1)
BATCH_SIZE = 256
"""Where no configuration says another."""
WORDS: dict[Verdict, str] = {
    "help": "invariance is likely to help",
    "cost": "invariance is likely to cost",
    "cannot tell": "the data cannot tell whether invariance helps",
}


def compare_trade_off(screen: Path, out: Path, options: CompareOptions, call: Call) -> Comparison:
    """Train ERM over learning rates and lengths and SCBD over alphas; judge every fold.

    Raises UserError if `out` holds another diagnosis or something else, for methods that are no
    recipes of erm and scbd, for every mistake that a plan refuses, and if every run failed.
    """
    file = out / "diagnose.yaml"
    wanted = plan_values(screen, options)
    text = yaml.safe_dump(wanted, sort_keys=False)
    refuse_other(out, file.name, "diagnosis", text)
    values = validated(PlanFile, wanted, "compare")
    plan = make_plan(Path("compare"), values, max_runs=options.max_runs)
    with atomic.locked(out):
        atomic.write_text(file, text)
        (shown, said), summary = execute(plan, out, write_view, call)
    return Comparison(shown, said, summary)


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write points.csv (one row for each run), diagnosis.json and diagnosis.png of a plan.

    Returns no table, and the verdict in sentences. Raises UserError if the plan has no entry erm,
    and if no run of it has ended.
    """
    if ERM not in plan.file.methods:
        raise UserError("compare: --view trade-off reads an entry erm; add one to the plan")
    points = _points(plan, done)
    if points.empty or ERM not in set(points["method"]):
        raise UserError(f"{out}: every run of erm failed; {out / 'failures.csv'} says why")
    atomic.write_text(out / "points.csv", csv_text(points))
    found = judge(points)
    _draw(points, found, out / "diagnosis.png")
    folds = [
        {name: None if value != value else value for name, value in asdict(one).items()}
        for one in found
    ]
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "screen": plan.screens[next(iter(plan.screens))].name,
        "folds": folds,
        "sentences": [*sentences(found), *said_of_entries(plan)],
        "curve": _curve(points).to_dict("records"),
    }
    atomic.write_text(out / "diagnosis.json", json.dumps(about, indent=2, allow_nan=False))
    return pd.DataFrame(), about["sentences"]


def sentences(found: list[FoldDiagnosis]) -> list[str]:
    """The verdict in words, and what each fold adds to it."""
    overall = found[-1]
    said = [f"{WORDS[overall.verdict].capitalize()}: {_evidence(overall)}."]
    if len(found) > 2:
        said += [f"{one.fold}: {WORDS[one.verdict]}; {_evidence(one)}." for one in found[:-1]]
    return said


def _evidence(one: FoldDiagnosis) -> str:
    if not np.isfinite(one.correlation):
        return (
            f"{one.settings} settings of ERM are strong in distribution; a correlation needs "
            f"{FEWEST} of a fold that differ in both accuracies, give more --learning-rates or "
            "--lengths"
        )
    return (
        f"over {one.settings} settings of ERM the accuracies in distribution and on held-out rows "
        f"correlate with r = {one.correlation:.2f} (95 % {one.low:.2f} … {one.high:.2f})"
    )


def plan_values(screen: Path, options: CompareOptions) -> dict[str, Any]:
    """The plan of a trade-off, as a plan file says it."""
    opened = open_screen(screen)
    folds = [_fold(word) for word in options.hold_out]
    if not folds and opened.roles.split is not None:
        folds = ["given"]
    elif not folds and opened.roles.levels:
        folds = [ALL_GROUPS + opened.roles.levels[0]]
    elif not folds:
        raise UserError(
            f"{screen}: has no levels and no split; name what to hold out with --hold-out"
        )
    recipes = _recipes(options.methods)
    grids: dict[str, dict[str, Any]] = {
        ERM: {"learning_rate": list(options.learning_rates), "steps": list(options.lengths)}
    }
    if options.alphas:
        grids[SCBD] = {"alpha": list(options.alphas)}
    entries: dict[str, Any] = {}
    for name, grid in grids.items():
        entries[name] = {"grid": grid, "training": {}}
        if name in recipes:
            entries[name]["config"] = recipes[name]
        else:
            entries[name]["training"] = {"batch_size": options.batch_size or BATCH_SIZE}
    if options.alphas:
        entries[SCBD]["training"] |= {"steps": max(options.lengths)}
        entries[SCBD]["options"] = {"decoder": "none"}
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": folds,
        "seeds": list(options.seeds or SEEDS),
        **({"data": options.given_data} if options.given_data else {}),
        "methods": entries,
    }


def _fold(word: str) -> str:
    """A fold, or a level, which is all of its groups."""
    is_fold = "=" in word or word in ("iid", "given") or word.startswith(ALL_GROUPS)
    return word if is_fold else ALL_GROUPS + word


def _recipes(methods: tuple[str, ...]) -> dict[str, str]:
    """The configurations that erm=FILE and scbd=FILE name."""
    found = {}
    for word in methods:
        name, _, file = word.partition("=")
        if name not in (ERM, SCBD) or not file:
            raise UserError(
                f"compare: --methods {word}: a trade-off trains erm and scbd; expected "
                "erm=CONFIG.yaml or scbd=CONFIG.yaml"
            )
        found[name] = str(Path(file).resolve())
    return found


def _points(plan: Plan, done: Done) -> pd.DataFrame:
    """One row for each finished run, by its own predictions."""
    rows = []
    for setting in plan.settings:
        for seed, name in setting.runs.items():
            result = done.results.get(name)
            if result is not None:
                about: dict[str, Any] = {"method": setting.entry, "fold": setting.fold}
                about |= {"setting": json.dumps(setting.values), **setting.values, "seed": seed}
                accuracies = {
                    "in_distribution": result.value("val", "accuracy"),
                    "held_out": result.value("test", "accuracy"),
                    "chance": result.value("val", "accuracy_chance"),
                }
                rows.append(about | accuracies)
    return pd.DataFrame(rows)


def _curve(points: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of both accuracies of SCBD, for each fold and alpha."""
    scbd = points[points["method"] == SCBD]
    if scbd.empty:
        return scbd
    grouped = scbd.groupby(["fold", "alpha"], sort=False)[["in_distribution", "held_out"]]
    mean, sd = grouped.mean().add_suffix("_mean"), grouped.std().add_suffix("_sd")
    return mean.join(sd.fillna(0.0)).reset_index()


def _draw(points: pd.DataFrame, found: list[FoldDiagnosis], file: Path) -> None:
    """Above: ERM, in distribution against held out; below: SCBD over alpha. A column a fold."""
    from matplotlib.figure import Figure

    folds = found[:-1]
    curve = _curve(points)
    height = 1 if curve.empty else 2
    figure = Figure(figsize=(3.4 * len(folds) + 0.6, 3.1 * height), layout="constrained")
    axes = figure.subplots(height, len(folds), squeeze=False)
    for column, one in enumerate(folds):
        erm = points[(points["method"] == ERM) & (points["fold"] == one.fold)]
        means = erm.groupby("setting", sort=False)[["in_distribution", "held_out"]].mean()
        above = axes[0, column]
        above.scatter(erm["in_distribution"], erm["held_out"], s=10, color="#bbbbbb")
        above.scatter(means["in_distribution"], means["held_out"], s=28, color="#4269d0")
        r = f"r = {one.correlation:.2f}" if np.isfinite(one.correlation) else "too few settings"
        above.set_title(f"{one.fold}\n{r}", fontsize=9)
        above.set_xlabel("ERM, in distribution")
        above.set_ylabel("ERM, held out")
        if curve.empty:
            continue
        below, own = axes[1, column], curve[curve["fold"] == one.fold]
        places = np.arange(len(own))
        for name, colour in (("in_distribution", "#6c7a89"), ("held_out", "#e8503f")):
            below.errorbar(
                places, own[f"{name}_mean"], own[f"{name}_sd"],
                color=colour, marker="o", capsize=2, label=name.replace("_", " "),
            )  # fmt: skip
        below.set_xticks(places, [f"{alpha:g}" for alpha in own["alpha"]])
        below.set_xlabel("SCBD, alpha")
        below.set_ylabel("accuracy")
        below.legend(fontsize=8)
    with atomic.atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
