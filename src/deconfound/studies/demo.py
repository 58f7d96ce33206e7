"""The main job on a simulated screen: ERM and SCBD on two held-out groups, and a report."""

import time
from pathlib import Path
from typing import Any, Unpack

from pydantic import Field

from deconfound.config import Options, validated
from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.groups import groups
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.experiments.execute import Done, execute
from deconfound.experiments.plan import make_plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.executors import ExecutorArguments, executor_options
from deconfound.experiments.running.messages import run_directory
from deconfound.files import atomic
from deconfound.reports.report import report

METHODS = ("erm", "scbd")


class DemoOptions(Options):
    """How large the demonstration is."""

    cells: int = Field(6_000, ge=500)
    """Simulated cells."""
    steps: int = Field(200, ge=1)
    """Training steps of every run."""
    seed: int = 0
    """Seed of the screen and of the runs."""


def demo(
    out: Path,
    options: DemoOptions | None = None,
    *,
    quiet: bool = False,
    **executors: Unpack[ExecutorArguments],
) -> Path:
    """Simulate a screen, hold out one plate and one series, compare ERM with SCBD, report.

    Everything is written under `out`; what is there already is not made again, so a killed
    demonstration resumes. Returns the path of the report. Raises UserError if `out` holds
    something else or a demonstration with other options, and if a run fails.
    """
    began = time.time()
    options, where = options or DemoOptions(), executor_options(executors)
    out = Path(out)
    _claim(out, options)
    screen = _screen(out / "screen", options, quiet)
    plan = make_plan(Path("demo"), validated(PlanFile, plan_values(screen, options), "demo"))

    def swap(done: Done) -> None:
        for setting in plan.settings:
            grid = out / f"{setting.entry}-{_short(setting.fold)}-swap"
            run = setting.runs[options.seed]
            if setting.entry == "scbd" and run in done.results and not grid.exists():
                transfer(run_directory(out, run), screen.path, grid)

    _, summary = execute(plan, out, where, swap, quiet=quiet, began=began)
    if summary.failed:
        raise UserError(f"{out}: {summary.failed} runs failed; {out / 'failures.csv'} says why")
    page = out / "report.html"
    if not page.exists():
        report([out], page)
    return page


def plan_values(screen: Screen, options: DemoOptions) -> dict[str, Any]:
    """The plan of the demonstration, as a plan file says it."""
    held_out = []
    for level in (screen.roles.levels[1], screen.roles.levels[0]):
        every = groups(screen.table, screen.roles, level)
        held_out.append(next(group.fold for group in every if group.refused is None))
    training = {"steps": options.steps, "augment": "dihedral", "schedule": "cosine"}
    scbd = {"alpha": 1.0, "decoder_steps": max(1, options.steps // 2)}
    return {
        "screens": [str(screen.path)],
        "folds": held_out,
        "seeds": [options.seed],
        "training": training | {"warmup_steps": 20, "validate_every": 50},
        "options": {"learning_rate": 2e-3},
        "methods": {"erm": {}, "scbd": {"options": scbd}},
        "chains": list(METHODS),
        "measure": held_out,
    }


def _short(fold: str) -> str:
    """ "plate" of "Metadata_Plate=S1/P1"."""
    return fold.partition("=")[0].removeprefix("Metadata_").lower()


def _screen(path: Path, options: DemoOptions, quiet: bool) -> Screen:
    if path.exists():
        return open_screen(path)
    return simulate(
        path, config=SimulateConfig(cells=options.cells, seed=options.seed), quiet=quiet
    )


def _claim(out: Path, options: DemoOptions) -> None:
    note = out / "demo.json"
    wanted = options.model_dump_json(indent=2)
    if note.is_file():
        if note.read_text(encoding="utf-8") != wanted:
            raise UserError(f"{out}: holds a demo with other options; choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not a demo; choose another --out")
    else:
        atomic.write_text(note, wanted)
