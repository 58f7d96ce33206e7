"""The main job on a simulated screen: three methods on two held-out groups, and a report."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.config import validated
from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.groups import groups
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.experiments.execute import Call, Done, execute
from deconfound.experiments.plan import Plan, make_plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.messages import run_directory
from deconfound.files import atomic
from deconfound.files.atomic import refuse_foreign
from deconfound.reports.report import report
from deconfound.runs.recommended import RECOMMENDED
from deconfound.studies.comparison import CompareOptions, Comparison

STEPS = 150
"""Training steps of every run, if not given."""
METHODS = ("erm", RECOMMENDED, "scbd")


def demo(out: Path, options: CompareOptions, call: Call) -> Comparison:
    """Simulate a screen, hold out one plate and one series, compare ERM, the recipe and SCBD.

    Everything is written under `out`; what is there already is not made again, so a killed
    demonstration resumes. Raises UserError if `out` holds something else or a demonstration with
    other options, and if a run fails.
    """
    size = {name: getattr(options, name) for name in ("cells", "steps", "seed")}
    wanted = json.dumps(size | {"steps": options.steps or STEPS}, indent=2)
    refuse_foreign(out, "demo.json", "demo", wanted)
    atomic.write_text(out / "demo.json", wanted)
    screen = _screen(out / "screen", options, call.quiet)
    plan = make_plan(Path("demo"), validated(PlanFile, plan_values(screen, options), "demo"))
    _, summary = execute(plan, out, _draw_swaps, call)
    if summary.failed:
        raise UserError(f"{out}: {summary.failed} runs failed; {out / 'failures.csv'} says why")
    page = out / "report.html"
    if not page.exists():
        report([out], page)
    return Comparison(pd.DataFrame(), page=page)


def plan_values(screen: Screen, options: CompareOptions) -> dict[str, Any]:
    """The plan of the demonstration, as a plan file says it."""
    held_out = []
    for level in (screen.roles.levels[1], screen.roles.levels[0]):
        every = groups(screen.table, screen.roles, level)
        held_out.append(next(group.fold for group in every if group.refused is None))
    steps = options.steps or STEPS
    training = {"steps": steps, "augment": "dihedral", "schedule": "cosine"}
    scbd = {"alpha": 1.0, "decoder_steps": max(1, steps // 2)}
    return {
        "screens": [str(screen.path)],
        "folds": held_out,
        "seeds": [options.seed],
        "training": training | {"warmup_steps": 20, "validate_every": 50},
        "options": {"learning_rate": 2e-3},
        "methods": {"erm": {}, RECOMMENDED: {}, "scbd": {"options": scbd}},
        "chains": list(METHODS),
        "measure": held_out,
    }


def _draw_swaps(plan: Plan, done: Done, out: Path) -> None:
    for setting in plan.settings:
        level = setting.fold.partition("=")[0].removeprefix("Metadata_").lower()
        grid = out / f"{setting.entry}-{level}-swap"
        for run in done.results.keys() & setting.runs.values():
            if setting.entry == "scbd" and not grid.exists():
                transfer(run_directory(out, run), setting.screen, grid)


def _screen(path: Path, options: CompareOptions, quiet: bool) -> Screen:
    if path.exists():
        return open_screen(path)
    config = SimulateConfig(cells=options.cells, seed=options.seed)
    return simulate(path, config=config, quiet=quiet)
