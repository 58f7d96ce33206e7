"""A screen of a million images through every verb, with the seconds and the peak memory of each.

    python benchmarks/million.py --work /tmp/million --out benchmarks/results/million.json
    python benchmarks/million.py --part scores --images 100000 300000 1000000 \\
        --work /tmp/million --out benchmarks/results/million.json
    python benchmarks/million.py --part sampling --images 100000 \
        --work /tmp/million --out benchmarks/results/million.json

A few thousand simulated cells are shifted and repeated into one NumPy array with a table of a
pooled screen: 200 images a gene, 4 guides each, 34 wells of 6 plates. Every step is a process of
its own; `peak_bytes` is the largest resident memory of it, in which pages of memory-mapped images
count, that the system takes back when another needs them. The folder is removed at the end; about
6 GB for a million images.

`--part scores` times what is done with embeddings: measure, aggregate, relations, report. The
embeddings, 128 features of content and 128 of style, are not computed but drawn: a centre for each
gene, or well, and noise. The images are of one channel, and the run of two steps, since
only the parts of its fold and its description are used; about 1.7 GB for a million rows.

`--part sampling` compares the scores of the content that `measure` makes of drawn rows, over five
seeds, with those of all rows: the probes fitted on every training row, the neighbours among all.
`--out` keeps what the file holds of other parts.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SIZE = 24
TEMPLATES = 4_000
IMAGES_A_GENE, GUIDES, PLATES, WELLS = 200, 4, 6, 34
GENES_A_COMPLEX = 10
WIDTHS = {"representation": 128, "content": 64, "style": 64}
"""Features of the embeddings that are drawn."""
BATCH, CLASSES_A_BATCH, BATCHES = 2_048, 256, 50
PART = 20_000
SEEDS = 5
PRINTING = ("sample", "sampling")
"""Steps whose last line is JSON of what they found."""


def make_inputs(folder: Path, images: int, size: int, channels: int) -> None:
    """Write images.npy, table.parquet, channels.json and complexes.gmt."""
    import numpy as np
    import pandas as pd

    from deconfound.data.simulation.simulate import SimulateConfig, simulate
    from deconfound.runtime.seeds import numpy_stream

    config = SimulateConfig(cells=TEMPLATES, size=size)
    cells = simulate(folder / "templates", config=config, quiet=True)
    pixels = cells.read(np.arange(len(cells)))[:, :channels]
    stream = numpy_stream(0, "million")
    shape = (images, *pixels.shape[1:])
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
            "Metadata_Gene": np.where(
                gene == 0, "nontargeting", np.char.add("gene", gene.astype(str))
            ),
            "Metadata_sgRNA": [f"g{g}_{n % GUIDES}" for g, n in zip(gene, number, strict=True)],
            "Metadata_Plate": np.char.add("P", (well % PLATES).astype(str)),
            "Metadata_Well": [f"{'ABCDEF'[w // PLATES]}{w % PLATES + 1:02d}" for w in well],
            "Metadata_X": stream.random(images) * 2960,
            "Metadata_Y": stream.random(images) * 2960,
        }
    )
    table.to_parquet(folder / "table.parquet")
    (folder / "channels.json").write_text(json.dumps(cells.channels[:channels]), encoding="utf-8")
    genes = [f"gene{number}" for number in range(max(50, images // IMAGES_A_GENE))]
    lines = [
        "\t".join([f"complex{start}", *genes[start : start + GENES_A_COMPLEX]])
        for start in range(0, len(genes), GENES_A_COMPLEX)
    ]
    (folder / "complexes.gmt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_embeddings(folder: Path) -> None:
    """Write `embeddings`: a centre for each gene, near those of its complex, or well, and noise."""
    import numpy as np

    from deconfound.data.folds.problem import pose
    from deconfound.data.screens.shards import Shard
    from deconfound.embeddings.embed import SHARD_ROWS
    from deconfound.embeddings.file import PART as PART_OF
    from deconfound.embeddings.file import PREDICTED
    from deconfound.embeddings.shards import (
        FORMAT_VERSION,
        ShardsIndex,
        metadata_names,
        write_index,
        write_shard,
    )
    from deconfound.embeddings.stream import EmbeddingStream, spans_of
    from deconfound.files.checksums import sha256
    from deconfound.runtime.seeds import numpy_stream

    stream = EmbeddingStream(folder / "run", folder / "screen", device="cpu")
    problem = pose(stream.screen, stream.run.config.data)
    label, environment = problem.label, problem.environment
    draw = numpy_stream(0, "million embeddings")
    number = np.array([int(name.removeprefix("gene") or 0) if name[-1].isdigit() else 0
                       for name in label.names])  # fmt: skip
    family = draw.standard_normal((number.max() // GENES_A_COMPLEX + 1, max(WIDTHS.values())))
    of_gene = family[number // GENES_A_COMPLEX] + draw.standard_normal(
        (len(number), family.shape[1])
    )
    of_well = draw.standard_normal((len(environment.names), family.shape[1]))
    weights = {"representation": (0.5, 0.3), "content": (0.5, 0.05), "style": (0.0, 0.6)}
    out = folder / "embeddings"
    out.mkdir()
    shards = []
    for place, span in enumerate(spans_of(len(stream.screen), SHARD_ROWS)):
        rows = slice(*span)
        gene, well = label.codes[rows], environment.codes[rows]
        blocks = {}
        for name, width in WIDTHS.items():
            of_label, of_environment = weights[name]
            noise = draw.standard_normal((len(gene), width), dtype=np.float32)
            centre = of_label * of_gene[gene, :width] + of_environment * of_well[well, :width]
            blocks[name] = (centre + noise).astype(np.float32)
        guess = draw.integers(len(label.names), size=len(gene))
        predicted = np.where(draw.random(len(gene)) < 0.4, gene, guess)
        file = out / f"part-{place:05d}.parquet"
        write_shard(file, stream.table(span, problem.fold.part, predicted), blocks)
        shards.append(Shard(file=file.name, rows=len(gene), sha256=sha256(file)))
    index = ShardsIndex(
        format_version=FORMAT_VERSION,
        rows=len(stream.screen),
        columns=metadata_names([*map(str, stream.screen.table.columns), PART_OF, PREDICTED]),
        representations=WIDTHS,
        shards=tuple(shards),
        made_of="drawn",
        about=stream.about(),
    )
    write_index(out, index)


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


def sampling(folder: Path) -> dict[str, object]:
    """Each score of the content by five seeds, and of all rows; processor seconds of both.

    The alarm of collapse is of 1,024 rows always.
    """
    from deconfound.data.readers.blocks import one_block
    from deconfound.embeddings.file import read_embeddings
    from deconfound.evaluation import representations

    embeddings = read_embeddings(folder, one_block("content"))

    def scores(seed: int) -> tuple[dict[str, float], float]:
        started = time.process_time()
        scorer = representations.RepresentationScorer(embeddings, seed)
        made = [*scorer.scores("content"), *scorer.alarms()]
        found = {f"{one.metric}, {one.part}": one.score.value for one in made}
        return found, time.process_time() - started

    drawn = [scores(seed) for seed in range(SEEDS)]
    representations.GRAPH_ROWS = representations.PROBE_ROWS = len(embeddings.table)
    every, seconds = scores(0)
    values = {name: [found[name] for found, _ in drawn] for name in every}
    return {
        "rows": len(embeddings.table),
        "drawn_processor_s": statistics.mean(used for _, used in drawn),
        "all_processor_s": seconds,
        "scores": {
            name: {
                "mean": statistics.mean(values[name]),
                "sd": statistics.stdev(values[name]),
                "all": None if name.startswith("supcon_collapse") else value,
            }
            for name, value in every.items()
        },
    }


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


def ingest(channels: Sequence[str]) -> list[str]:
    """The command that makes the screen."""
    roles = "--label Metadata_Gene --environment Metadata_Plate Metadata_Well"
    levels = "--levels Metadata_Plate Metadata_Well"
    words = f"ingest table.parquet --array images.npy --channels {' '.join(channels)} {roles}"
    return f"{words} {levels} --out screen --quiet".split()


def of_images(channels: Sequence[str]) -> dict[str, list[str]]:
    """The commands from images to embeddings."""
    fit = "fit erm screen --out run --steps 20 --validate-every 20 --sampler label_balanced"
    sizes = f"--batch-size {BATCH} --classes-per-batch {CLASSES_A_BATCH} --device cpu --quiet"
    return {
        "ingest": ingest(channels),
        "describe": ["describe", "screen", "--out", "described", "--quiet"],
        "sample": [],
        "fit": f"{fit} {sizes}".split(),
        "embed": ["embed", "run", "screen", "--out", "embeddings", "--device", "cpu", "--quiet"],
    }


def of_embeddings(channels: Sequence[str]) -> dict[str, list[str]]:
    """The commands to drawn embeddings."""
    fit = "fit erm screen --out run --fold Metadata_Plate=P0 --steps 2 --validate-every 2"
    return {
        "ingest": ingest(channels),
        "fit": f"{fit} --batch-size 256 --device cpu --quiet".split(),
        "draw_embeddings": [],
    }


def of_sampling(channels: Sequence[str]) -> dict[str, list[str]]:
    """The commands to drawn embeddings, and the comparison."""
    return of_embeddings(channels) | {"sampling": []}


def of_scores(channels: Sequence[str]) -> dict[str, list[str]]:
    """The commands from embeddings to a page."""
    return of_embeddings(channels) | {
        "measure": ["measure", "embeddings", "--out", "scores.parquet", "--quiet"],
        "aggregate": ["aggregate", "embeddings", "--out", "genes.h5ad", "--quiet"],
        "relations": [
            "measure",
            "genes.h5ad",
            "--complexes",
            "complexes.gmt",
            "--out",
            "scores_relations.parquet",
            "--quiet",
        ],
        "report": ["report", ".", "--out", "report.html"],
    }


def timed(part: str, images: int, folder: Path) -> dict[str, object]:
    """Every step of a part, on a screen of `images` rows made in `folder`."""
    size, most_channels = SIZE, 4 if part == "images" else 1
    commands = {"images": of_images, "scores": of_scores, "sampling": of_sampling}[part]
    own = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--images", str(images)]
    folder.mkdir(parents=True)
    try:
        run([*own, "--step", "make_inputs"], folder)
        channels = json.loads((folder / "channels.json").read_text(encoding="utf-8"))
        found: dict[str, object] = {
            "images": images,
            "image_shape": [most_channels, size, size],
            "pixel_bytes": images * most_channels * size * size,
            "cores": len(os.sched_getaffinity(0)),
        }
        for name, words in commands(channels).items():
            command = [sys.executable, "-m", "deconfound", *words]
            step = run(command if words else [*own, "--step", name], folder)
            said = step.pop("said")
            found[name] = step | (json.loads(str(said[-1])) if name in PRINTING else {})  # type: ignore[index]
            if name == "ingest":
                (folder / "images.npy").unlink()
        embeddings = sum(file.stat().st_size for file in (folder / "embeddings").iterdir())
        return found | {"embeddings_bytes": embeddings}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=["images", "scores", "sampling"], default="images")
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--work", type=Path, default=Path("million"))
    parser.add_argument("--step", choices=["make_inputs", "draw_embeddings", *PRINTING])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    match arguments.step:  # in processes of their own, as memory is inherited
        case "make_inputs":
            size, channels = SIZE, 4 if arguments.part == "images" else 1
            make_inputs(Path(), arguments.images[0], size, channels)
        case "sample":
            print(json.dumps(sample(Path("screen"))))
        case "sampling":
            print(json.dumps(sampling(Path("embeddings"))))
        case "draw_embeddings":
            draw_embeddings(Path())
        case _:
            folder = arguments.work.resolve()
            found: list[dict[str, object]] = []
            for rows in arguments.images:
                found.append(timed(arguments.part, rows, folder / str(rows)))
                report = {arguments.part: found}
                if arguments.out:
                    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
                    text = json.dumps(kept | report, indent=1) + "\n"
                    arguments.out.write_text(text, encoding="utf-8")
            print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
