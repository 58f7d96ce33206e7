"""A screen of a million images through every verb, with the seconds and the peak memory of each.

    python benchmarks/million.py --work /tmp/million --out benchmarks/results/million.json

A few thousand simulated cells are shifted and repeated into one NumPy array with a table of a
pooled screen: 200 images a gene, 4 guides each, 34 wells of 6 plates. Every step is a process of
its own; `peak_bytes` is the largest resident memory of it, in which pages of memory-mapped images
count, that the system takes back when another needs them. The folder is removed at the end; about
6 GB for a million images.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SIZE = 24
TEMPLATES = 4_000
IMAGES_A_GENE, GUIDES, PLATES, WELLS = 200, 4, 6, 34
BATCH, CLASSES_A_BATCH, BATCHES = 2_048, 256, 50
PART = 20_000


def make_inputs(folder: Path, images: int) -> None:
    """Write images.npy, table.parquet and channels.json."""
    import numpy as np
    import pandas as pd

    from deconfound.data.simulation.simulate import SimulateConfig, simulate
    from deconfound.runtime.seeds import numpy_stream

    config = SimulateConfig(cells=TEMPLATES, size=SIZE)
    cells = simulate(folder / "templates", config=config, quiet=True)
    pixels = cells.read(np.arange(len(cells)))
    stream = numpy_stream(0, "million")
    shape = (images, *cells.image_shape)
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", cells.dtype, shape)
    label = cells.coded([str(cells.roles.label)])
    gene = stream.integers(max(50, images // IMAGES_A_GENE), size=images)
    order = np.argsort(label.codes, kind="stable")
    start = np.searchsorted(label.codes[order], np.arange(len(label.names) + 1))
    mechanism = gene % len(label.names)
    within = stream.random(images) * (start[mechanism + 1] - start[mechanism])
    template = order[start[mechanism] + within.astype(np.int64)]
    for first in range(0, images, PART):
        part = slice(first, min(first + PART, images))
        shift = stream.integers(-2, 3, size=2).tolist()
        array[part] = np.roll(pixels[template[part]], shift, axis=(2, 3))
    array.flush()
    well = stream.integers(WELLS, size=images)
    number = np.arange(images)
    table = pd.DataFrame(
        {
            "Metadata_CellID": [f"cell{n:09d}" for n in number],
            "Metadata_Gene": np.char.add("gene", gene.astype(str)),
            "Metadata_sgRNA": [f"g{g}_{n % GUIDES}" for g, n in zip(gene, number, strict=True)],
            "Metadata_Plate": np.char.add("P", (well % PLATES).astype(str)),
            "Metadata_Well": np.char.add("W", well.astype(str)),
            "Metadata_X": stream.random(images) * 2960,
            "Metadata_Y": stream.random(images) * 2960,
        }
    )
    table.to_parquet(folder / "table.parquet")
    (folder / "channels.json").write_text(json.dumps(cells.channels), encoding="utf-8")


def sample(path: Path) -> dict[str, float]:
    """Seconds to pose the problem and to build each sampler, and the images a second of each."""
    import torch

    from deconfound.config import DataOptions
    from deconfound.data.folds.problem import pose
    from deconfound.data.loading.batch import BatchReader
    from deconfound.data.loading.intensity import fit_intensity
    from deconfound.data.loading.sampler import (
        EnvironmentBalancedSampler,
        LabelBalancedSampler,
        Sampler,
    )
    from deconfound.data.screens.screen import open_screen

    started = time.perf_counter()
    screen = open_screen(path)
    opened = time.perf_counter()
    problem = pose(screen, DataOptions())
    found = {"open_s": opened - started, "pose_s": time.perf_counter() - opened}
    rows = problem.fold.rows("train")
    label, environment = problem.label.codes[rows], problem.environment.codes[rows]
    intensity = fit_intensity(screen, rows, "none", "standardise", 0)
    reader = BatchReader(
        screen,
        label=problem.label.codes,
        environment=problem.environment.codes,
        intensity=intensity,
        device=torch.device("cpu"),
    )
    for name in ("label_balanced", "environment_balanced"):
        started = time.perf_counter()
        sampler: Sampler = (
            LabelBalancedSampler(rows, label, BATCH, CLASSES_A_BATCH, 0)
            if name == "label_balanced"
            else EnvironmentBalancedSampler(rows, environment, BATCH, 0)
        )
        built = time.perf_counter()
        steps = (sampler.rows(step) for step in range(BATCHES))
        drawn = sum(len(batch) for batch in reader.stream(steps))
        found[f"{name}_build_s"] = built - started
        found[f"{name}_images_per_s"] = drawn / (time.perf_counter() - built)
    return found


def run(words: list[str], folder: Path) -> dict[str, object]:
    """Run a process to its end; its seconds, those of its processors, and its peak memory."""
    with (folder / "said.txt").open("w") as said:
        started = time.perf_counter()
        child = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    text = (folder / "said.txt").read_text()
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)}: exit code {code}\n{text}")
    found = {
        "seconds": round(seconds, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    print(words[3:6], json.dumps(found), flush=True)
    return found | {"said": text.strip().splitlines()[-2:]}


def steps(channels: tuple[str, ...]) -> dict[str, list[str]]:
    """The command of every verb."""
    roles = "--label Metadata_Gene --environment Metadata_Plate Metadata_Well"
    levels = "--levels Metadata_Plate Metadata_Well"
    ingest = f"ingest table.parquet --array images.npy --channels {' '.join(channels)} {roles}"
    fit = "fit erm screen --out run --steps 20 --validate-every 20 --sampler label_balanced"
    sizes = f"--batch-size {BATCH} --classes-per-batch {CLASSES_A_BATCH} --device cpu --quiet"
    return {
        "ingest": f"{ingest} {levels} --out screen --quiet".split(),
        "describe": ["describe", "screen", "--out", "described", "--quiet"],
        "fit": f"{fit} {sizes}".split(),
        "embed": ["embed", "run", "screen", "--out", "embeddings", "--device", "cpu", "--quiet"],
        "measure": ["measure", "embeddings", "--out", "scores.parquet", "--quiet"],
    }


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("million"))
    parser.add_argument("--step", choices=["make_inputs", "sample"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "make_inputs":  # in processes of their own, as memory is inherited
        make_inputs(Path(), arguments.images)
        return
    if arguments.step == "sample":
        print(json.dumps(sample(Path("screen"))))
        return
    folder = arguments.work.resolve()
    folder.mkdir(parents=True)
    try:
        own = [sys.executable, str(Path(__file__).resolve()), "--images", str(arguments.images)]
        run([*own, "--step", "make_inputs"], folder)
        channels = json.loads((folder / "channels.json").read_text(encoding="utf-8"))
        report: dict[str, object] = {
            "images": arguments.images,
            "image_shape": [len(channels), SIZE, SIZE],
            "pixel_bytes": arguments.images * len(channels) * SIZE * SIZE,
            "cores": len(os.sched_getaffinity(0)),
        }
        for name, words in steps(channels).items():
            report[name] = run([sys.executable, "-m", "deconfound", *words], folder)
            if name == "describe":
                sampled = run([*own, "--step", "sample"], folder)
                said = sampled.pop("said")
                report["sample"] = sampled | json.loads(str(said[-1]))  # type: ignore[index]
        embeddings = sum(file.stat().st_size for file in (folder / "embeddings").iterdir())
        report["embeddings_bytes"] = embeddings
    finally:
        shutil.rmtree(folder)
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
