"""Is the simulated screen a fair problem? A plain classifier's macro-F1, and the simulator's speed.

Per layout: (a) `clean`: without technical variation, series held out; (b) `iid`: the screen as it
is, a random fifth of the cells held out; (c) `series` (each in turn), `plate`, `section`: as it is,
groups of that level held out; `oracle_randomised`: trained on the same cells in random new
environments, series held out. Scored on the classes present on both sides. Expected: clean ≥ 0.85,
iid ≥ 0.80, series ≤ half of iid, oracle_randomised ≥ 0.75.

Run: python benchmarks/simulated_screen.py
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from deconfound.arrays import Images, Rows
from deconfound.data.folds.fold import Part, make_fold, shared_labels
from deconfound.data.folds.groups import groups
from deconfound.data.loading.augmentation import dihedral, random_turns
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.counterfactual import counterfactual, new_environment
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.files.atomic import write_text
from deconfound.runtime.seeds import derived_seed, numpy_stream, torch_stream

BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
CELLS_PER_NEW_ENVIRONMENT = 64
FOLDS = {"clean": 2, "series": 4, "oracle_randomised": 2, "plate": 2, "section": 2}
LIMITS = {"clean": 0.85, "iid": 0.80, "oracle_randomised": 0.75}


def network(channels: int, classes: int) -> nn.Module:
    """Four convolutions with batch normalisation, average pooling, a linear layer."""
    widths = (channels, 24, 48, 64, 96)
    layers: list[nn.Module] = []
    for depth, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
        stride = 2 if depth < 3 else 1
        layers += [
            nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wide_out),
            nn.ReLU(),
        ]
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return nn.Sequential(*layers, *pooled)


def trained(
    images_of_epoch: Callable[[int], Images], label: Rows, classes: int, epochs: int, seed: int
) -> Callable[[Images], Rows]:
    """Cross-entropy training on images (N, C, H, W); returns the predictor of labels."""
    images = images_of_epoch(0)
    pixels = images.reshape(*images.shape[:2], -1)
    mean = torch.from_numpy(pixels.mean(axis=(0, 2), dtype=np.float64)).float()[:, None, None]
    sd = torch.from_numpy(pixels.std(axis=(0, 2), dtype=np.float64)).float()[:, None, None]

    def standardised(batch: Images) -> Tensor:
        return (torch.from_numpy(batch).float() - mean) / sd

    torch.manual_seed(derived_seed(seed, "network"))
    net = network(images.shape[1], classes)
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    per_epoch = len(label) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, epochs * per_epoch)
    turns = torch_stream(seed, "turns")
    for epoch in range(epochs):
        images = images_of_epoch(epoch)
        order = numpy_stream(seed, "order", epoch).permutation(len(label))
        for step in range(per_epoch):
            rows = order[step * BATCH : (step + 1) * BATCH]
            batch = standardised(images[rows])
            batch = dihedral(batch, random_turns(batch, len(batch), turns))
            logits = net(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(label[rows]))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    net.eval()

    def predicted(test: Images) -> Rows:
        with torch.no_grad():
            parts = [
                net(standardised(test[start : start + 512])).argmax(1)
                for start in range(0, len(test), 512)
            ]
        return torch.cat(parts).numpy()

    return predicted


@dataclass(frozen=True)
class Run:
    """One training: a check of a layout, one fold, one seed."""

    layout: str
    check: str
    screen: Path
    fold: str
    seed: int
    epochs: int


def score(run: Run) -> dict[str, Any]:
    """Macro-F1 of the held-out part, over the classes that training has too."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    screen = open_screen(run.screen)
    assert screen.roles.label is not None
    fold = make_fold(screen.table, screen.roles, run.fold, id_test_fraction=0.2)
    label = screen.coded([screen.roles.label])
    train = fold.rows("train")

    def as_stored(_epoch: int) -> Images:
        return screen.read(train)

    def in_new_environments(epoch: int) -> Images:
        order = numpy_stream(run.seed, "randomised", epoch).permutation(len(train))
        images = np.empty((len(train), *screen.image_shape), screen.dtype)
        for start in range(0, len(train), CELLS_PER_NEW_ENVIRONMENT):
            chosen = order[start : start + CELLS_PER_NEW_ENVIRONMENT]
            optics = new_environment(screen, f"{run.seed}-{epoch}-{start}")
            images[chosen] = counterfactual(screen, train[chosen], optics, threads=1)
        return images

    images_of_epoch = in_new_environments if run.check == "oracle_randomised" else as_stored
    predict = trained(images_of_epoch, label.codes[train], len(label.names), run.epochs, run.seed)

    def macro_f1(part: Part) -> float:
        shared = shared_labels(label, fold, part)
        rows = fold.rows(part)
        rows = rows[np.isin(label.codes[rows], shared)]
        guess = predict(screen.read(rows))
        of = f1_score(label.codes[rows], guess, labels=shared, average="macro", zero_division=0)
        return round(float(of), 4)

    return {
        "fold": run.fold,
        "seed": run.seed,
        "macro_f1": macro_f1("test"),
        "macro_f1_same_environments": None if run.fold == "iid" else macro_f1("id_test"),
        "classes": len(shared_labels(label, fold, "test")),
        "train": len(train),
        "test": len(fold.rows("test")),
        "seconds": round(time.perf_counter() - started, 1),
    }


def level_folds(screen: Screen, column: str, most: int) -> list[str]:
    """Folds that leave one group of a level out, at most `most`, evenly spread."""
    found = [g.fold for g in groups(screen.table, screen.roles, column) if g.refused is None]
    chosen = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[k] for k in chosen]


def planned(screen: Screen, clean: Screen, layout: str, epochs: int, seeds: int) -> list[Run]:
    """Every training of one layout."""
    series = level_folds(screen, "Metadata_Series", FOLDS["series"])
    checks = {
        "clean": (clean, level_folds(clean, "Metadata_Series", FOLDS["clean"])),
        "iid": (screen, ["iid"]),
        "series": (screen, series),
        "oracle_randomised": (
            screen,
            level_folds(screen, "Metadata_Series", FOLDS["oracle_randomised"]),
        ),
    }
    for column in screen.roles.levels[1:]:
        check = column.removeprefix("Metadata_").lower()
        checks[check] = (screen, level_folds(screen, column, FOLDS[check]))
    return [
        Run(layout, check, of.path, fold, seed, epochs)
        for check, (of, folds) in checks.items()
        for fold in folds
        for seed in range(seeds)
    ]


def main() -> None:
    """Run the checks of both layouts and write their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).parent / "results" / "simulated_screen.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--layouts", nargs="+", default=["grid", "lincs"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    layouts: dict[str, dict[str, Any]] = {}
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layout in arguments.layouts:
            config = SimulateConfig.model_validate({"layout": layout})
            wall, busy = time.perf_counter(), time.process_time()
            screen = simulate(folder / layout, config=config, quiet=True)
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            layouts[layout] = {
                "config": config.model_dump(),
                "cells_per_second": round(len(screen) / wall),
                "cells_per_processor_second": round(len(screen) / busy),
            }
            without = config.model_copy(update={"technical": 0.0})
            clean = simulate(folder / f"{layout}-clean", config=without, quiet=True)
            runs += planned(screen, clean, layout, arguments.epochs, arguments.seeds)
            print(layout, layouts[layout], flush=True)
        scores: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.workers, spawn) as pool:
            for run, result in zip(runs, pool.map(score, runs), strict=True):
                scores[run.layout, run.check].append(result)
                print(run.layout, run.check, result, flush=True)
    for layout, found in layouts.items():
        checks = {check: of for (name, check), of in scores.items() if name == layout}
        means = {check: np.mean([run["macro_f1"] for run in of]) for check, of in checks.items()}
        for check, of in checks.items():
            found[check] = {"macro_f1": round(float(means[check]), 4), "runs": of}
        found["passes"] = {check: bool(means[check] >= limit) for check, limit in LIMITS.items()}
        found["passes"]["series"] = bool(means["series"] <= means["iid"] / 2)
        print(layout, {check: round(float(mean), 3) for check, mean in means.items()})
        print(layout, "passes", found["passes"])
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "training": {
            "batch": BATCH,
            "epochs": arguments.epochs,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "augmentation": "dihedral",
        },
        "layouts": layouts,
    }
    write_text(arguments.out, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
