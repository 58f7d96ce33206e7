"""diagnose: does accuracy in distribution trade against accuracy outside it? Will invariance help?

Makino et al., SCBD, section 4.1.2: SCBD can help where ERM shows the trade-off, over its learning
rates and lengths. The held-out labels are read, so this describes a screen and selects nothing.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from deconfound.config import Options, validated
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.experiments.execute import Done, execute
from deconfound.experiments.held_out import ALL_GROUPS
from deconfound.experiments.overhead import Summary
from deconfound.experiments.plan import Plan, make_plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.executors import ExecutorArguments, executor_options
from deconfound.experiments.verdict import FEWEST, FoldDiagnosis, Verdict, judge
from deconfound.files import atomic

FORMAT_VERSION = 1
ERM, SCBD = "erm", "scbd"
WORDS: dict[Verdict, str] = {
    "help": "invariance is likely to help",
    "cost": "invariance is likely to cost",
    "cannot tell": "the data cannot tell whether invariance helps",
}


class DiagnoseOptions(Options):
    """What is trained for a diagnosis."""

    folds: tuple[str, ...] = ()
    """Folds, or "all groups of COLUMN"; if not given, the screen's own split, or all groups of the
    outermost level."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of ERM."""
    lengths: tuple[int, ...] = (50, 150, 450)
    """Training steps of ERM; SCBD trains for the largest."""
    alphas: tuple[float, ...] = (0.0, 1.0, 4.0, 8.0)
    """Weights of the invariance loss of SCBD; give none to leave the curve out."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of every setting."""
    erm: Path | None = None
    """Configuration of a run of ERM to start from."""
    scbd: Path | None = None
    """The same of SCBD."""
    batch_size: int = Field(256, ge=1)
    """Images in a batch, where the configurations say nothing."""


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found."""

    folds: list[FoldDiagnosis]
    """Of every fold, and last of all folds together."""
    summary: Summary


def diagnose(
    screen: Path,
    out: Path,
    options: DiagnoseOptions | None = None,
    *,
    quiet: bool = False,
    started: float | None = None,
    **executors: Unpack[ExecutorArguments],
) -> Diagnosis:
    """Train ERM over learning rates and lengths and SCBD over alphas; judge every fold.

    Writes below the directory `out` what `execute` does, points.csv (one row for each run),
    diagnosis.json and diagnosis.png; a killed call resumes. Raises UserError if `out` holds another
    diagnosis or something else, for every mistake that a plan refuses, and if every run failed.
    """
    began = time.time() if started is None else started
    options, where = options or DiagnoseOptions(), executor_options(executors)
    out = Path(out)
    file = out / "diagnose.yaml"
    wanted = _plan_values(Path(screen), options)
    text = yaml.safe_dump(wanted, sort_keys=False)
    if out.exists() and any(out.iterdir()):
        if not file.is_file():
            raise UserError(f"{out}: exists and is not a diagnosis; choose another --out")
        if file.read_text(encoding="utf-8") != text:
            raise UserError(f"{out}: holds a diagnosis with other options; choose another --out")
    plan = make_plan(Path("compare"), validated(PlanFile, wanted, "compare"))
    found: list[FoldDiagnosis] = []
    with atomic.locked(out):
        atomic.write_text(file, text)
        _, summary = execute(
            plan, out, where, lambda done: found.extend(_write(plan, done, out)), quiet=quiet,
            began=began,
        )  # fmt: skip
    if not found:
        raise UserError(f"{out}: every run failed; {out / 'failures.csv'} says why")
    return Diagnosis(found, summary)


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write the trade-off of a plan with entries erm and, perhaps, scbd; no table, and the verdict.

    Raises UserError if the plan has no entry erm.
    """
    if ERM not in plan.file.methods:
        raise UserError("compare: --view trade-off reads an entry erm; add one to the plan")
    found = _write(plan, done, out)
    return pd.DataFrame(), sentences(found) if found else []


def _write(plan: Plan, done: Done, out: Path) -> list[FoldDiagnosis]:
    """Write points.csv, diagnosis.json and diagnosis.png; nothing where no run of ERM has ended."""
    points = _points(done.scores)
    if points.empty or ERM not in set(points["method"]):
        return []
    atomic.write_text(out / "points.csv", points.to_csv(index=False))
    found = judge(points)
    _draw(points, found, out / "diagnosis.png")
    folds = [
        {name: None if value != value else value for name, value in asdict(one).items()}
        for one in found
    ]
    about = {
        "format_version": FORMAT_VERSION,
        "screen": plan.screens[next(iter(plan.screens))].name,
        "folds": folds,
        "sentences": sentences(found),
        "curve": _curve(points).to_dict("records"),
    }
    atomic.write_text(out / "diagnosis.json", json.dumps(about, indent=2, allow_nan=False))
    return found


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


def _plan_values(screen: Path, options: DiagnoseOptions) -> dict[str, Any]:
    """The plan that a diagnosis needs, as a plan file says it."""
    opened = open_screen(screen)
    folds = list(options.folds)
    if not folds and opened.roles.split is not None:
        folds = ["given"]
    elif not folds and opened.roles.levels:
        folds = [ALL_GROUPS + opened.roles.levels[0]]
    elif not folds:
        raise UserError(
            f"{screen}: has no levels and no split; name what to hold out with --hold-out"
        )
    entries: dict[str, Any] = {
        ERM: _entry(
            options.erm,
            options,
            {"learning_rate": list(options.learning_rates), "steps": list(options.lengths)},
        )
    }
    if options.alphas:
        entries[SCBD] = _entry(options.scbd, options, {"alpha": list(options.alphas)})
        entries[SCBD]["training"] |= {"steps": max(options.lengths)}
        entries[SCBD]["options"] = {"decoder": "none"}
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": folds,
        "seeds": list(options.seeds),
        "methods": entries,
    }


def _entry(config: Path | None, options: DiagnoseOptions, grid: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"grid": grid, "training": {}}
    if config is None:
        entry["training"] = {"batch_size": options.batch_size}
    else:
        entry["config"] = str(config.resolve())
    return entry


def _points(scores: pd.DataFrame) -> pd.DataFrame:
    """One row for each finished run, from the long table."""
    rows = []
    by_run = scores.groupby(["entry", "fold", "setting", "seed", "run"], sort=False)
    for (entry, fold, setting, seed, _), run in by_run:
        value = run.set_index(["part", "metric"])["value"]
        rows.append(
            {
                "method": entry,
                "fold": fold,
                "setting": setting,
                **json.loads(str(setting)),
                "seed": seed,
                "in_distribution": value.get(("val", "accuracy"), np.nan),
                "held_out": value.get(("test", "accuracy"), np.nan),
                "chance": value.get(("val", "accuracy_chance"), np.nan),
            }
        )
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
