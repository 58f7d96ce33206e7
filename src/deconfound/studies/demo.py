"""The demonstration: a study of a simulated screen, each of whose series is held out in turn."""

import json
from pathlib import Path

from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.experiments.execute import Call
from deconfound.files import atomic
from deconfound.files.atomic import refuse_foreign
from deconfound.runs.recommended import RECOMMENDED
from deconfound.studies.comparison import CompareOptions, Comparison
from deconfound.studies.source import DEMO_MARKER
from deconfound.studies.study import BASELINE, compare_study

CELLS, STEPS = 3_000, 150
"""Simulated cells and training steps of every run, if not given."""
SEEDS, BATCH, SIZE = 2, 64, 32
"""Seeds of every run, images in a batch, pixels of a side."""
METHODS = (BASELINE, RECOMMENDED)
LEVEL = "Metadata_Series"


def demo(out: Path, options: CompareOptions, call: Call) -> Comparison:
    """Simulate a screen, and study ERM and the recommended recipe with each series held out.

    Everything is written under `out`; what is there already is not made again, so a killed
    demonstration resumes. Raises UserError if `out` holds something else or a demonstration with
    other options, and if a run fails.
    """
    size = {"cells": options.cells or CELLS, "steps": options.steps or STEPS, "seed": options.seed}
    wanted = json.dumps(size, indent=2)
    refuse_foreign(out, DEMO_MARKER, "demo", wanted)
    atomic.write_text(out / DEMO_MARKER, wanted)
    screen = _screen(out / "screen", size["cells"], options.seed, call.quiet)
    asked = CompareOptions(
        methods=METHODS,
        hold_out=(LEVEL,),
        seeds=tuple(range(options.seed, options.seed + SEEDS)),
        steps=size["steps"],
        batch_size=BATCH,
    )
    return compare_study(screen, out, asked, {}, call)


def _screen(path: Path, cells: int, seed: int, quiet: bool) -> Screen:
    if path.exists():
        return open_screen(path)
    config = SimulateConfig(cells=cells, size=SIZE, sections=1, seed=seed)
    return simulate(path, config=config, quiet=quiet)
