"""SCBD's dial on one fold: ERM, alpha 0, 1 and auto, given the label, heavier cross positives.

    python benchmarks/dial.py SCREEN --fold Metadata_Series=S2 --seeds 0 1 --runs runs --out d.csv

Fits each setting (what is done already is not done again), and writes a row for each run: macro-F1
in distribution and on the held-out rows, how well a fresh probe reads the outermost level and the
environment from the content of validation rows, alpha, and seconds. With `--shuffle-environments`
the environments change places at random first: the control, in which nothing is to be gained.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from trade_off import with_shuffled_environments

from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.metrics.accuracy import macro_f1, seen_in_training
from deconfound.metrics.probe import linear_probe
from deconfound.runs.config import config_model
from deconfound.runs.run import Run
from deconfound.runtime.device import start_fabric
from deconfound.training.fit import fit

GIVEN, CROSS = {"invariance_given": "label"}, {"cross_environment_weight": 4.0}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "erm": ("erm", {}),
    "alpha 0": ("scbd", {"alpha": 0}),
    "alpha 1": ("scbd", {"alpha": 1}),
    "alpha 3": ("scbd", {"alpha": 3}),
    "alpha 10": ("scbd", {"alpha": 10}),
    "auto": ("scbd", {"alpha": "auto"}),
    "label, alpha 1": ("scbd", {"alpha": 1, **GIVEN}),
    "label, alpha 3": ("scbd", {"alpha": 3, **GIVEN}),
    "label, alpha 10": ("scbd", {"alpha": 10, **GIVEN}),
    "label, alpha 30": ("scbd", {"alpha": 30, **GIVEN}),
    "label, auto": ("scbd", {"alpha": "auto", **GIVEN}),
    "cross 4, alpha 0": ("scbd", {"alpha": 0, **CROSS}),
    "cross 16, alpha 0": ("scbd", {"alpha": 0, "cross_environment_weight": 16.0}),
    "cross 4, label, alpha 3": ("scbd", {"alpha": 3, **GIVEN, **CROSS}),
}


def scored(run: Run, screen: Screen) -> dict[str, float]:
    """The scores of a finished run."""
    problem = pose(screen, run.config.data)
    training = run.config.training
    embedder = Embedder.of_run(run, screen, start_fabric(training.device, "32", training.threads))
    found: dict[str, float] = {}
    for part, name in (("id_test", "in distribution"), ("test", "held out")):
        rows = problem.fold.rows(part)  # type: ignore[arg-type]
        predicted = embedder.labels(rows, 512)
        assert predicted is not None
        truth = problem.label.codes[rows]
        seen = seen_in_training(truth, np.arange(len(run.labels)))
        found[name] = float(macro_f1(truth, predicted, seen).value)
    rows = np.concatenate([problem.fold.rows("val"), problem.fold.rows("id_test")])
    blocks = [one.representations for one in embedder.stream(in_batches(rows, 512))]
    content = np.concatenate(
        [one.get("content", one["representation"]).cpu().numpy() for one in blocks]
    )
    half = np.arange(len(rows)) % 2 == 0
    outer = screen.coded([problem.roles.levels[0]]).codes[rows]
    for target, code in (("outermost", outer), ("environment", problem.environment.codes[rows])):
        found[f"{target} read"] = float(linear_probe(content, code, half, ~half).macro_f1.value)
    return found


def main() -> None:
    """Fit and score every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--fold", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shuffle-environments", action="store_true")
    given = parser.parse_args()
    source = given.screen
    if given.shuffle_environments:
        source = with_shuffled_environments(source, given.runs.with_name("shuffled"))
    screen = open_screen(source)
    rows = []
    for seed in given.seeds:
        for name in given.settings:
            method, options = SETTINGS[name]
            started = time.perf_counter()
            fixed = {"decoder": "none"} if method == "scbd" else {}
            config = config_model(method)(
                method=method,
                seed=seed,
                data=DataOptions(fold=given.fold),
                training=TrainingOptions(
                    steps=given.steps, batch_size=given.batch_size, device=given.device, threads=1,
                    validate_every=50, checkpoint_every=200,
                ),
                options=config_model(method)(method=method).options.model_validate(fixed | options),
            )  # fmt: skip
            run = fit(config, source, given.runs / f"{name} {seed}".replace(" ", "_"), quiet=True)
            seconds = time.perf_counter() - started
            alpha = (run.config.chosen or options).get("alpha", np.nan)
            row = {"setting": name, "seed": seed, "alpha": alpha, **scored(run, screen)}
            rows.append(row | {"seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
