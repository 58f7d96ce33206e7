"""Training beside a busy process: with our thread settings, and with threads that spin.

    python benchmarks/contention.py --out benchmarks/results/contention.json

Every case is a fresh process that trains the small encoder on random 48-px cells, alone and with
one core kept busy by another process. Our package sets passive waiting before libgomp loads;
"spinning" undoes it, as any program that does not set it would run.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TRAIN = """
import time, torch, deconfound
from deconfound import machine
from deconfound.data.batch import Batch
from deconfound.methods.base import Task
from deconfound.methods.erm import Erm, ErmOptions
fabric = machine.start("cpu", "auto", {threads})
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
print(sorted(seconds[2:])[{steps} // 2])
"""
SPINNING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "infinity"}


def seconds_a_step(busy: bool, spinning: bool, steps: int, threads: int) -> float:
    """Median seconds of a training step in a fresh process."""
    environment = dict(os.environ)
    for name in SPINNING:
        environment.pop(name, None)
    if spinning:
        environment |= SPINNING
    neighbour = (
        subprocess.Popen([sys.executable, "-c", "while True: pass"], env=environment)
        if busy
        else None
    )
    try:
        code = TRAIN.format(steps=steps, threads=threads)
        done = subprocess.run(
            [sys.executable, "-c", code],
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
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    rows = []
    table = Table("threads wait", "alone s/step", "beside a busy process", "ratio")
    for spinning in (False, True):
        alone = seconds_a_step(False, spinning, arguments.steps, arguments.threads)
        beside = seconds_a_step(True, spinning, arguments.steps, arguments.threads)
        name = "spinning" if spinning else "passively (ours)"
        rows.append({"wait": name, "alone": alone, "busy": beside, "ratio": beside / alone})
        table.add_row(name, f"{alone:.3f}", f"{beside:.3f}", f"{beside / alone:.1f}×")
    Console().print(table)
    if arguments.out:
        text = json.dumps({"threads": arguments.threads, "rows": rows}, indent=2)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
