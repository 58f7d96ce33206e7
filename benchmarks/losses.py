"""Time and memory of the three contrastive terms of SCBD, beside the paper's listing.

The terms are SupCon of z_c by label, SupCon of z_s by environment and the invariance of z_c
("listing" reduction): one forward and one backward pass. Times are taken in one process, the two
implementations by turns; the memory of each in a process of its own, as the peak of resident memory
above what the process held just before. Both are repeated under an allocator told to keep freed
memory, because much of the listing's time is spent on page faults.

    python benchmarks/losses.py --out
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deconfound.files.atomic import write_text
from deconfound.losses import content_losses, supervised_contrastive
from deconfound.runtime.seeds import torch_stream

RESULTS = Path(__file__).parent / "results"
TEMPERATURE = 0.1
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}


class Batch:
    """Random unit rows and labels; the gradients of both blocks after `losses` ran backward."""

    def __init__(self, count: int, arguments: argparse.Namespace, dtype: torch.dtype) -> None:
        stream = torch_stream(0, "benchmark", count)
        size = (count, arguments.dimensions)
        rows = [F.normalize(torch.randn(size, generator=stream), dim=1) for _ in range(2)]
        self.content, self.style = (z.to(arguments.device, dtype).requires_grad_() for z in rows)
        self.label, self.environment = (
            torch.randint(kinds, (count,), generator=stream).to(arguments.device)
            for kinds in (arguments.labels, arguments.environments)
        )

    def gradients(self) -> list[Tensor]:
        """The gradients of z_c and z_s, which are then cleared."""
        found = [z.grad for z in (self.content, self.style) if z.grad is not None]
        self.content.grad = self.style.grad = None
        return found


def ours(batch: Batch) -> Tensor:
    """The three terms by `deconfound.losses`."""
    attraction, gap = content_losses(
        batch.content, batch.label, batch.environment, TEMPERATURE, "listing"
    )
    return attraction + gap + supervised_contrastive(batch.style, batch.environment, TEMPERATURE)


def listing(batch: Batch) -> Tensor:
    """The three terms by Makino et al., SCBD, appendix B."""
    return (
        _listing_supervised_contrastive(batch.content, batch.label)
        + _listing_invariance(batch.content, batch.environment)
        + _listing_supervised_contrastive(batch.style, batch.environment)
    )


def _listing_supervised_contrastive(z: Tensor, u: Tensor) -> Tensor:
    positive = (u.unsqueeze(1) == u.unsqueeze(0)).to(z.dtype)
    positive = positive * (1.0 - torch.eye(len(z), dtype=z.dtype, device=z.device))
    logits = torch.matmul(z, z.T) / TEMPERATURE
    p = positive / positive.sum(dim=1, keepdim=True).clamp(min=1.0)
    return F.cross_entropy(F.log_softmax(logits, dim=1), p)


def _listing_invariance(z: Tensor, e: Tensor) -> Tensor:
    positive = (e.unsqueeze(1) == e.unsqueeze(0)).to(z.dtype)
    negative = 1.0 - positive
    positive = positive * (1.0 - torch.eye(len(z), dtype=z.dtype, device=z.device))
    q = F.log_softmax(torch.matmul(z, z.T) / TEMPERATURE, dim=1)
    return ((q * positive).mean(dim=1) - (q * negative).mean(dim=1)).abs().mean()


IMPLEMENTATIONS: dict[str, Callable[[Batch], Tensor]] = {"ours": ours, "listing": listing}


def measure_times(count: int, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of forward and backward per implementation, after one repeat that is not counted."""
    batch = Batch(count, arguments, torch.float32)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(arguments.repeats + 1):
        for name in names:
            work = time.process_time()
            start = _now()
            loss = IMPLEMENTATIONS[name](batch)
            middle = _now()
            loss.backward()  # type: ignore[no-untyped-call]
            taken[name].append((middle - start, _now() - middle, time.process_time() - work))
            del loss
            batch.gradients()
    return {name: _summary(times[1:]) for name, times in taken.items()}


def _summary(times: list[tuple[float, float, float]]) -> dict[str, float]:
    """CPU seconds, summed over threads, tell the work where other processes compete for cores."""
    return {
        "forward_median_s": statistics.median(forward for forward, _, _ in times),
        "backward_median_s": statistics.median(backward for _, backward, _ in times),
        "median_s": statistics.median(forward + backward for forward, backward, _ in times),
        "best_s": min(forward + backward for forward, backward, _ in times),
        "cpu_best_s": min(work for _, _, work in times),
    }


def measure_memory(count: int, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak MiB above the inputs during one forward and backward of a single implementation."""
    (name,) = names
    # Load the libraries and start the threads before the baseline is read.
    IMPLEMENTATIONS[name](Batch(64, arguments, torch.float32)).backward()  # type: ignore[no-untyped-call]
    batch = Batch(count, arguments, torch.float32)
    if arguments.device == "cuda":
        baseline = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        baseline = _resident("VmRSS")
    IMPLEMENTATIONS[name](batch).backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else _resident("VmHWM")
    return {name: {"extra_mib": (peak - baseline) / 2**20}}


def measure_agreement(
    count: int, names: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Largest differences between the implementations in float64."""
    batch = Batch(count, arguments, torch.float64)
    values, gradients = [], []
    for name in names:
        loss = IMPLEMENTATIONS[name](batch)
        loss.backward()  # type: ignore[no-untyped-call]
        values.append(loss.item())
        gradients.append(batch.gradients())
    return {
        "value": abs(values[0] - values[1]),
        "gradient": max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)),
    }


MEASUREMENTS = {
    "times": measure_times,
    "memory": measure_memory,
    "agreement": measure_agreement,
}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_fresh_process(
    what: str, count: int, names: list[str], allocator: str = "default"
) -> dict[str, Any]:
    """Run one measurement with this command's own options in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", what, str(count), *names]
    environment = {**os.environ, **ALLOCATORS[allocator]}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    cases = []
    allocators = list(ALLOCATORS) if arguments.device == "cpu" else ["default"]
    for count in arguments.sizes:
        names = ["ours", "listing"] if count <= arguments.listing_max else ["ours"]
        for allocator in allocators:
            found = in_fresh_process("times", count, names, allocator)
            for name in names:
                found[name].update(in_fresh_process("memory", count, [name], allocator)[name])
            cases.append({"rows": count, "allocator": allocator, **found})
    return {
        "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dimensions": arguments.dimensions,
        "labels": arguments.labels,
        "environments": arguments.environments,
        "temperature": TEMPERATURE,
        "repeats": arguments.repeats,
        "float64_difference_at_2048": in_fresh_process("agreement", 2048, ["ours", "listing"]),
        "cases": cases,
    }


def device_name(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def show(result: dict[str, Any]) -> None:
    """Print the cases as a table."""
    table = Table(title=f"three terms, forward + backward, {result['device']}")
    for column in ("rows", "allocator", "by"):
        table.add_column(column)
    for column in (
        *("forward s", "backward s", "median s", "best s", "CPU s", "extra MiB"),
        *("×median", "×best", "×CPU", "×memory"),
    ):
        table.add_column(column, justify="right")
    for case in result["cases"]:
        for name in (name for name in IMPLEMENTATIONS if name in case):
            found, reference = case[name], case["ours"]
            times = ("forward_median_s", "backward_median_s", "median_s", "best_s", "cpu_best_s")
            ratios = ("median_s", "best_s", "cpu_best_s", "extra_mib")
            table.add_row(
                f"{case['rows']:,}",
                case["allocator"],
                name,
                *(f"{found[field]:.4f}" for field in times),
                f"{found['extra_mib']:.1f}",
                *(f"{found[field] / reference[field]:.1f}" for field in ratios),
            )
    console = Console(width=140)
    console.print(table)
    difference = result["float64_difference_at_2048"]
    console.print(
        f"float64 at 2,048 rows: values differ by {difference['value']:.1e}, "
        f"gradients by {difference['gradient']:.1e}; {result['threads']} threads"
    )


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--environments", type=int, default=34)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--listing-max",
        type=int,
        default=8192,
        help="largest batch on which the listing runs too; it needs 11 GB at 16,384",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=RESULTS,
        help="write JSON here; without a value, benchmarks/results/losses_DEVICE.json",
    )
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, count, *names = arguments.measure
        print(json.dumps(MEASUREMENTS[what](int(count), names, arguments)))
        return
    result = run(arguments)
    show(result)
    if arguments.out:
        device = "cpu" if arguments.device == "cpu" else result["device"].replace(" ", "_")
        path = RESULTS / f"losses_{device}.json" if arguments.out == RESULTS else arguments.out
        write_text(path, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
