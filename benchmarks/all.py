"""One page of ratios: this program beside what it replaces, both in one process.

    python benchmarks/all.py --quick
    python benchmarks/all.py --quick --out benchmarks/results/all.json

Each ratio says how many times as fast this program is, but `embed_of_encoder`, the share of the
encoder's own rate that embed reaches, and `reader_of_memory`, the share of the rate of copying and
converting the same bytes once. They are of processor time where the two sides are single
processes' work, so that other programs do not stretch them.

| ratio | beside |
|---|---|
| losses | the listing of Makino et al. (SCBD, appendix B), forward and backward |
| reader | a DataLoader of single items, with pandas for the metadata |
| lisi | harmonypy's compute_lisi on the same rows (left out where it is not installed) |
| loop | a loop as DomainBed writes it: loading alone, and steps of training |
| imputation | a generator step and imputed images of StarGAN v2, beside IST's |

Compared with the JSON of an earlier run (`--against`, by default the one in `results`), a ratio
that is lower by 20 % or more is named, and the exit code is 1.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import domainbed
import embed
import lisi
import loading
import losses
import torch
import transfer

RESULT = Path(__file__).parent / "results" / "all.json"
WORSE = 0.8
"""A ratio below this share of the earlier one is a regression."""
Ratios = dict[str, float]


def of_losses(quick: bool) -> Ratios:
    """Of one and two thousand rows."""
    given = argparse.Namespace(
        dimensions=64, device="cpu", labels=50, environments=10, repeats=3 if quick else 9
    )
    found = {}
    for rows in (1_024, 2_048):
        times = losses.measure_times(rows, list(losses.IMPLEMENTATIONS), given)
        found[f"losses_{rows}"] = times["listing"]["cpu_best_s"] / times["ours"]["cpu_best_s"]
    return found


def of_loading(quick: bool) -> Ratios:
    """Of standardised float32 batches."""
    loading.REPEATS = 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        found = loading.measure(Path(folder))
    return {"reader": found["ratio"], "reader_of_memory": found["of_memory"]}


def of_lisi(quick: bool) -> Ratios:
    """Of label and environment; neighbours included on both sides."""
    if find_spec("harmonypy") is None:
        return {}
    embedding, codes = lisi.embedding_with_batches(2_000 if quick else 20_000)
    graph, values, _, _ = lisi.time_ours(embedding, codes, 3)
    theirs, _ = lisi.time_harmonypy(embedding, codes)
    return {"lisi": theirs.processor_s / (graph + values).processor_s}


def of_loop(quick: bool) -> Ratios:
    """Of loading and of training."""
    with tempfile.TemporaryDirectory() as folder:
        found = domainbed.measure(Path(folder), 8 if quick else 30)
    return {"loop_loading": found["fed_ratio"], "loop_training": found["trained_ratio"]}


def of_imputation(quick: bool) -> Ratios:
    """Of small networks, images of 48 px."""
    rows = transfer.measured("small", 48, 8, 2 if quick else 7, "32", "cpu")
    step, images = "processor_seconds_a_step", "imputation_seconds_for_1000_images"
    ist, stargan = (next(row for row in rows if row["method"] == n) for n in ("ist", "stargan2"))
    return {
        "imputation_step": stargan[step] / ist[step],
        "imputation_images": stargan[images] / ist[images],
    }


def of_embed(quick: bool) -> Ratios:
    """Of the small encoder on one thread."""
    vars(importlib.import_module("deconfound.embeddings.embed"))["EmbeddingStream"] = embed.Timed
    if quick:
        embed.SECONDS["cpu"], embed.ROUNDS = 4.0, 2
    with tempfile.TemporaryDirectory() as folder:
        found = embed.measure("small", "cpu", "32", 1, Path(folder))
    return {"embed_of_encoder": found["processor_ratio"]}


PARTS: dict[str, Callable[[bool], Ratios]] = {
    "losses": of_losses,
    "loading": of_loading,
    "lisi": of_lisi,
    "loop": of_loop,
    "imputation": of_imputation,
    "embed": of_embed,
}


def regressions(found: Ratios, before: Ratios) -> list[str]:
    """A line for every ratio that is lower by a fifth or more than `before`, or has gone."""
    return [
        f"{name}: {found[name]:.2f}, was {value:.2f}: lower by {1 - found[name] / value:.0%}"
        for name, value in before.items()
        if name in found and found[name] <= WORSE * value
    ]


def main() -> int:
    """Run, print the page, write JSON, and compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats: 10 minutes")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--against", type=Path, help="JSON of an earlier run")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios: Ratios = {}
    seconds = {}
    for name in given.parts:
        started = time.perf_counter()
        found = PARTS[name](given.quick)
        ratios |= found
        seconds[name] = round(time.perf_counter() - started, 1)
        said = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
        print(f"{name}, {seconds[name]} s: {said}", file=sys.stderr, flush=True)
    report: dict[str, Any] = {
        "quick": given.quick,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "seconds": seconds,
        "cores": os.cpu_count(),
        "processor": losses.device_name("cpu"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "faiss-cpu")},
    }
    for name, value in report["ratios"].items():
        print(f"{name:20} {value:8.2f}")
    against = given.against or (RESULT if RESULT.is_file() else None)
    worse: list[str] = []
    if against is not None:
        before = json.loads(against.read_text(encoding="utf-8"))
        if before["quick"] == given.quick:
            worse = regressions(ratios, before["ratios"])
            print("\n".join(worse) if worse else f"no ratio is lower by 20 % than in {against}")
        else:
            print(f"{against} is of another size; not compared")
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
