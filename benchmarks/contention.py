"""Training beside a busy process: how long libgomp's threads should spin while they wait.

    python benchmarks/contention.py --out benchmarks/results/contention.json

Every case is a fresh process that trains the small encoder on random 48-px cells, alone and with
one core kept busy by another process; the cases take turns. Our package sets `GOMP_SPINCOUNT`
before libgomp loads, unless the user has; the other cases set it here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TRAIN = """
import time, torch, deconfound
from deconfound.runtime.device import start_fabric
from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.erm import Erm, ErmOptions
fabric = start_fabric("cpu", "auto", {threads})
torch.manual_seed(0)
method = Erm(ErmOptions(), Task(4, 48, 9, 8)).to(memory_format=torch.channels_last)
image = torch.rand(256, 4, 48, 48).to(memory_format=torch.channels_last)
batch = Batch(image, torch.randint(9, (256,)), torch.randint(8, (256,)), torch.arange(256))
(stage,) = method.stages(1)
optimizers = [phase.optimizer() for phase in stage.phases]
seconds = []
for _ in range({steps} + 2):
    start = time.perf_counter()
    with fabric.autocast():
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    seconds.append(time.perf_counter() - start)
print(sum(seconds[2:]) / {steps})
"""
CASES: dict[str, tuple[dict[str, str], int | None]] = {
    "ours": ({}, None),
    "no spinning": ({"GOMP_SPINCOUNT": "0"}, None),
    "libgomp's own 300,000": ({"GOMP_SPINCOUNT": "300000"}, None),
    "spinning for ever": ({"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "infinity"}, None),
    "ours, one thread": ({}, 1),
}
"""Environment and threads of each case; all cores if None."""


def seconds_a_step(settings: dict[str, str], threads: int, busy: bool, steps: int) -> float:
    """Mean seconds of a training step in a fresh process."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    } | settings
    loop = [sys.executable, "-c", "while True: pass"]
    neighbour = subprocess.Popen(loop) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRAIN.format(steps=steps, threads=threads)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    return float(done.stdout)


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(arguments.repeats):
        for name, (settings, threads) in CASES.items():
            for busy in (False, True):
                taken = seconds_a_step(settings, threads or cores, busy, arguments.steps)
                found.setdefault((name, busy), []).append(taken)
    rows = []
    table = Table("while threads wait", "alone s/step", "beside a busy process", "ratio")
    for name in CASES:
        alone, beside = (statistics.median(found[name, busy]) for busy in (False, True))
        rows.append(
            {"case": name, "alone": alone, "busy": beside, "ratio": beside / alone}
            | {"all_alone": found[name, False], "all_busy": found[name, True]}
        )
        table.add_row(name, f"{alone:.3f}", f"{beside:.3f}", f"{beside / alone:.1f}×")
    Console().print(table)
    if arguments.out:
        report = {"cores": cores, "steps": arguments.steps, "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
