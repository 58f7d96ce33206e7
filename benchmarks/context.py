"""Batch statistics of the target environment: how few images do, and what a label shift does.

A series is held out, and each environment of it is predicted in target batches of n images, whose
statistics take the place of those of training: as they are, joined with the environment's negative
controls, or of the controls alone. `half`: a batch holds half of the labels of its environment.
`one`: 60 % of a batch are of one label. Scored by the macro-F1 over all predictions of a case.

python benchmarks/context.py SCREEN --out RUNS [--without Metadata_Series=S1] [--json FILE]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from deconfound import methods
from deconfound.arrays import Codes, Rows
from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.folds.controls import control_rows
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.files.atomic import write_text
from deconfound.methods.contract import Method
from deconfound.metrics.accuracy import macro_f1
from deconfound.nets.context import Moments, adapt_batch_norm
from deconfound.runs.config import config_model
from deconfound.runs.context import Sample, measured
from deconfound.runs.run import Run, learn_groups, open_run
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.fit import fit

SIZES = (8, 32, 128)
DOMINATED = 0.6
DRAWN = 2
"""Batches of one label's dominance, in each environment for each label."""
RULES = {
    "erm": ("training", "images"),
    "armbn": ("images",),
    "csarmbn": ("joined", "controls"),
}
"""What statistics are taken of: all training rows, the images of the target batch, these with the
controls of their environment, or the controls alone."""


class Target(NamedTuple):
    """A target batch: the rows that are predicted, and the controls of their environment."""

    rows: Rows
    controls: Rows


def targets(
    problem: Problem,
    environment: Codes,
    negative: Rows,
    rows: Rows,
    case: str,
    size: int,
    seed: int,
) -> Iterator[Target]:
    """The batches of a case, environment after environment; size 0 takes all rows as one batch."""
    stream = numpy_stream(seed, "target batches", case, size)
    label = problem.label.codes
    for code in np.unique(environment[rows]):
        own = rows[environment[rows] == code]
        controls = np.intersect1d(own, negative)
        present = stream.permutation(np.unique(label[own]))
        if case == "one":
            for chosen in np.repeat(present, DRAWN):
                of_it, others = own[label[own] == chosen], own[label[own] != chosen]
                many = round(DOMINATED * size)
                found = [stream.permutation(of_it)[:many], stream.permutation(others)]
                yield Target(np.concatenate(found)[:size], controls)
            continue
        half = len(present) // 2
        kinds = [present] if case == "all" else [present[:half], present[half:]]
        for kind in kinds:
            some = stream.permutation(own[np.isin(label[own], kind)])
            for part in np.array_split(some, max(1, round(len(some) / (size or len(some))))):
                yield Target(part, controls)


def sample(target: Target, rule: str, joined: int, episode: int) -> Sample:
    """Images and controls, weighed as in an episode, or one of both."""
    own, controls = target
    share = joined / (joined + min(len(own), episode))
    share = {"images": 0.0, "controls": 1.0, "joined": share}[rule]
    weight = np.repeat([(1 - share) / len(own), share / len(controls)], [len(own), len(controls)])
    return Sample(np.concatenate([own, controls]), weight.astype(np.float32))


class Predictor:
    """Predicts target batches by the statistics that a rule names."""

    def __init__(self, run: Run, screen: Screen) -> None:
        self.method, intensity = run.load(screen)
        group = learn_groups(run, screen, intensity)
        device = torch.device("cpu")
        self.reader = BatchReader(screen, intensity=intensity, device=device, group=group)
        self.adapted = _adapting(self.method)
        asked = run.config.options.context
        self.joined = asked.controls if asked is not None and asked.controls else 32
        self.episode = run.config.training.batch_size // 4
        self._measured: dict[bytes, list[Moments]] = {}

    @torch.no_grad()
    def __call__(self, target: Target, rule: str) -> Codes:
        """Codes (B,) of the rows of a target batch."""
        method = self.method if rule == "training" else self.adapted
        if rule != "training":
            assert method.context is not None
            of = sample(target, rule, self.joined, self.episode)
            of = Sample(of.rows[of.weight > 0], of.weight[of.weight > 0])
            if (key := of.rows.tobytes()) not in self._measured:
                self._measured[key] = measured(method, self.reader, of)
            method.context.put(-1, self._measured[key])
        logits = method.predict(method.embed(self.reader.read(target.rows).image))
        assert logits is not None
        return logits.argmax(dim=1).numpy()


def _adapting(method: Method) -> Method:
    """The method itself, or a copy of ERM whose batch norms can be given other statistics."""
    if method.context is not None:
        return method
    import copy

    found = copy.deepcopy(method)
    found.context = adapt_batch_norm(found, 0, "erm")
    return found.eval()


def scores(run: Run, screen: Screen, part: str) -> Iterator[dict[str, Any]]:
    """Macro-F1 of every rule, case and size, over the rows of a part."""
    problem = pose(screen, run.config.data)
    environment = screen.coded(run.roles.environment).codes
    negative = np.flatnonzero(control_rows(screen.table, run.roles.label, None, str(screen.path)))
    label, predictor = problem.label.codes, Predictor(run, screen)
    rows = problem.fold.rows(part)  # type: ignore[arg-type]
    rows = rows[label[rows] >= 0]
    cases = [("all", size) for size in (*SIZES, 0)] + [("half", 32), ("half", 0), ("one", 32)]
    for case, size in cases:
        batches = list(targets(problem, environment, negative, rows, case, size, run.config.seed))
        truth = label[np.concatenate([target.rows for target in batches])]
        for rule in RULES[run.config.method]:
            predicted = np.concatenate([predictor(target, rule) for target in batches])
            value = macro_f1(truth, predicted, np.ones(len(truth), dtype=bool)).value
            yield {
                "method": run.config.method, "statistics": rule, "case": case, "n": size,
                "seed": run.config.seed, "macro_f1": round(float(value), 4),
            }  # fmt: skip


def trained(name: str, arguments: argparse.Namespace, seed: int) -> Run:
    """A run, which may have been finished before."""
    config = config_model(name)(
        method=name,
        seed=seed,
        data=DataOptions(fold=arguments.fold, without=arguments.without),
        training=TrainingOptions(
            steps=arguments.steps, batch_size=arguments.batch_size, schedule="cosine",
            augment="dihedral", validate_every=100, device="cpu", precision="32", threads=1,
            selection="last",
        ),
        options=methods.load(name).Options(learning_rate=2e-3),
    )  # fmt: skip
    out = arguments.out / f"{name}-{seed}"
    if not (out / "model.safetensors").is_file():
        fit(config, arguments.screen, out, quiet=True)
    return open_run(out)


def main() -> None:
    """Train, predict, and write the scores of every run and their means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", default="Metadata_Series=S2")
    parser.add_argument("--without")
    parser.add_argument("--methods", nargs="+", default=list(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    screen = open_screen(arguments.screen)
    found, seconds = [], {}
    for seed in range(arguments.seeds):
        for name in arguments.methods:
            run = trained(name, arguments, seed)
            seconds[f"{name}-{seed}"] = run.provenance()["training_seconds"]
            part = "test" if arguments.without is None else "ood_val"
            found += list(scores(run, screen, part))
    table = pd.DataFrame(found)
    grouped = table.groupby(["method", "statistics", "case", "n"])["macro_f1"]
    summary = pd.DataFrame({"mean": grouped.mean(), "sd": grouped.std()}).round(3)
    print(summary["mean"].unstack(["case", "n"]).to_string())
    if arguments.json is not None:
        about = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        result = {
            "about": about | {"screen": screen.provenance.get("simulate", str(screen.path))},
            "seconds": seconds,
            "mean": summary.reset_index().to_dict("records"),
            "runs": found,
        }
        write_text(arguments.json, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
