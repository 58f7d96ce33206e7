"""How long the samplers take at the size of a pooled screen: to build, a batch, and their memory.

    python benchmarks/sampler.py --out benchmarks/results/sampler.json

26 million rows, 5,000 classes whose sizes differ, 34 environments, batches of 2,048 (256 classes ×
8 rows). Each sampler is built in a process of its own; the loops that it replaces, one `np.where` a
class, are timed on 50 classes and multiplied.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deconfound.arrays import Rows
from deconfound.data.loading.sampler import (
    EnvironmentBalancedSampler,
    LabelBalancedSampler,
    PlainSampler,
    Sampler,
    UniformSampler,
)
from deconfound.runtime.seeds import numpy_stream

ROWS, CLASSES, ENVIRONMENTS = 26_000_000, 5_000, 34
BATCH, CLASSES_A_BATCH = 2_048, 256
BATCHES = 200

BUILD: dict[str, Callable[[Rows, Rows, Rows], Sampler]] = {
    "plain": lambda rows, _, __: PlainSampler(rows, BATCH, 0),
    "label_balanced": lambda rows, label, _: LabelBalancedSampler(
        rows, label, BATCH, CLASSES_A_BATCH, 0
    ),
    "label_uniform": lambda rows, label, _: UniformSampler(rows, label, BATCH, 0, "own"),
    "environment_balanced": lambda rows, _, environment: EnvironmentBalancedSampler(
        rows, environment, BATCH, 0
    ),
}


def codes(rows: int, classes: int, environments: int) -> tuple[Rows, Rows]:
    """Labels of classes whose sizes fall tenfold, and environments, at random places."""
    stream = numpy_stream(0, "codes")
    share = np.linspace(1.0, 0.1, classes)
    label = np.searchsorted(np.cumsum(share) / share.sum(), stream.random(rows)).astype(np.int64)
    return np.minimum(label, classes - 1), stream.integers(environments, size=rows)


def peak() -> int:
    """Bytes of this process at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(name: str, size: tuple[int, int, int]) -> dict[str, float]:
    """Seconds to build, of the first batch and of one of the others, and bytes on top of codes."""
    label, environment = codes(*size)
    rows = np.arange(size[0], dtype=np.int64)
    before = peak()
    started = time.perf_counter()
    sampler = BUILD[name](rows, label, environment)
    built = time.perf_counter()
    sampler.rows(0)
    first = time.perf_counter()
    drawn = sum(len(sampler.rows(step)) for step in range(1, BATCHES + 1))
    ended = time.perf_counter()
    return {
        "build_s": built - started,
        "first_batch_s": first - built,
        "batch_ms": (ended - first) / BATCHES * 1e3,
        "rows_per_s": drawn / (ended - first),
        "peak_bytes_beside_codes": peak() - before,
    }


def loop_over_classes(size: tuple[int, int, int], tried: int = 50) -> float:
    """Seconds that one `np.where` a class takes, from `tried` of them."""
    label, _ = codes(*size)
    started = time.perf_counter()
    for code in range(tried):
        np.where(label == code)
    return (time.perf_counter() - started) / tried * size[1]


def in_a_process(*words: str) -> dict[str, float]:
    """What this script prints as JSON, called with `words`."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--only", choices=list(BUILD))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = arguments.rows, CLASSES, ENVIRONMENTS
    if arguments.only:
        print(json.dumps(measured(arguments.only, size)))
        return
    report: dict[str, object] = {
        "rows": arguments.rows, "classes": CLASSES, "environments": ENVIRONMENTS, "batch": BATCH,
        "bytes_of_codes": 3 * 8 * arguments.rows,
    }  # fmt: skip
    for name in BUILD:
        report[name] = in_a_process("--only", name, "--rows", str(arguments.rows))
        print(name, json.dumps(report[name]), flush=True)
    report["loop_over_classes_s"] = loop_over_classes(size)
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
