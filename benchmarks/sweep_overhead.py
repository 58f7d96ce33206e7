"""What a sweep costs beside training: four runs of ERM of about a minute, two at a time.

    python benchmarks/sweep_overhead.py SCREEN --steps 90 \
        --out benchmarks/results/sweep_overhead.json

The screen needs a split of its own. `--steps` is what trains for a minute on the machine; other
work on it slows training and overhead alike. Reported is the sweep's own summary, and the processor
seconds of all its processes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from deconfound.data.screens.screen import open_screen

RUNS, WORKERS = 4, 2


def main() -> None:
    """Sweep, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    steps = arguments.steps
    training = {"steps": steps, "batch_size": arguments.batch_size, "device": "cpu"}
    training |= {"validate_every": steps, "checkpoint_every": steps}
    plan = {
        "screens": [str(arguments.screen.resolve())],
        "folds": ["given"],
        "seeds": list(range(RUNS)),
        "data": {"scaling": "unit"},
        "training": training,
        "options": {"encoder": "small", "norm": "group"},
        "methods": {"erm": None},
    }
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "sweep.yaml", Path(folder) / "out"
        file.write_text(yaml.safe_dump(plan), encoding="utf-8")
        words = ["compare", str(file), "--out", str(out), "--workers", str(WORKERS), "--quiet"]
        subprocess.run([sys.executable, "-m", "deconfound", *words], check=True)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    screen = open_screen(arguments.screen)
    report = {
        "screen": {"name": screen.name, "rows": len(screen)},
        "steps": steps,
        "batch_size": arguments.batch_size,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[2],
        "training_seconds_of_a_run": summary["training_seconds"] / RUNS,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "summary": summary,
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
