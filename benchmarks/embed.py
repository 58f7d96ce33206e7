"""How fast `embed` is beside the encoder alone: same device, same process, same batches.

    python benchmarks/embed.py --device cpu --out benchmarks/results/embed_cpu.json
    python benchmarks/embed.py --device cpu --threads 2 --out benchmarks/results/embed_cpu_2.json
    python benchmarks/embed.py --device cuda --out benchmarks/results/embed_cuda.json

Embeds 4×64×64 uint8 images into a directory, and runs the method of the same run, in the same
layout, precision and size of batch, on one batch that lies on the device as the network takes it.
Of four rounds the best one counts, on each side. `ratio` compares the rate that embed prints, from
the first image read to the last file written, with the encoder's, both by the clock; on the CPU,
which reads and writes with the same core, `processor_ratio` does so by the time of its threads, as
a machine that others use is slow at random. `whole_call` counts opening and publishing too. The
encoder's one batch stays in the caches of a CPU, which those of embed do not.

Pixels are noise; the files of the screen are links to one file, so that they lie in memory.
"""

import argparse
import importlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deconfound import methods
from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed_shards
from deconfound.embeddings.stream import EmbeddingStream, batch_size
from deconfound.files.checksums import sha256
from deconfound.intervention.embedder import represent
from deconfound.runs.config import config_model
from deconfound.runs.run import Run
from deconfound.runtime.device import Precision, device_name, start_fabric
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.fit import fit

SHAPE = (4, 64, 64)
FILE_ROWS = 4_096
SECONDS = {"cpu": 12.0, "cuda": 8.0}
MOST_ROWS = 1_048_576
ROUNDS = 4


@dataclass(frozen=True)
class Rate:
    """Images a second by the clock, and by the time of all threads of the processor."""

    clock: float
    processor: float


class Timed(EmbeddingStream):
    """Knows the seconds of all threads of the processor that embedding took."""

    processor = 0.0

    def embed(self, *words: Any) -> None:
        """As it does."""
        worked = time.process_time()
        super().embed(*words)
        Timed.processor = time.process_time() - worked


def metadata(rows: int) -> pd.DataFrame:
    """The table of a pooled screen, as far as a run needs it."""
    stream = numpy_stream(0, "table")
    return pd.DataFrame(
        {
            "Metadata_Gene": np.char.add("gene", stream.integers(500, size=rows).astype(str)),
            "Metadata_Well": np.char.add("W", stream.integers(34, size=rows).astype(str)),
        }
    )


def make_screen(path: Path) -> Screen:
    """A screen of noise in one file."""
    pixels = numpy_stream(0, "pixels").integers(0, 256, (FILE_ROWS, *SHAPE), dtype=np.uint8)
    roles = Roles(label="Metadata_Gene", environment=("Metadata_Well",))
    with ScreenWriter(path, "noise", ("DNA", "ER", "actin", "mito"), roles, {}) as writer:
        writer.append(pixels)
        writer.finish(metadata(FILE_ROWS))
    return open_screen(path)


def repeated(screen: Screen, path: Path, times: int) -> Screen:
    """A screen whose files are links to the one file of `screen`."""
    path.mkdir()
    (shard,) = screen.index.shards
    named = [shard.model_copy(update={"file": f"images-{n:05d}.npy"}) for n in range(times)]
    for one in named:
        os.link(screen.path / shard.file, path / one.file)
    table = path / "table.parquet"
    metadata(times * FILE_ROWS).to_parquet(table)
    made = {"rows": times * FILE_ROWS, "shards": tuple(named), "table_sha256": sha256(table)}
    index = screen.index.model_copy(update=made)
    index = index.model_copy(update={"sha256": index.digest()})
    (path / "screen.json").write_text(index.model_dump_json(), encoding="utf-8")
    return open_screen(path)


def make_run(screen: Screen, encoder: str, device: str, out: Path) -> Run:
    """A run of two steps."""
    known = methods.load("erm").Options
    config = config_model("erm")(
        method="erm",
        data=DataOptions(val_fraction=0.1),
        training=TrainingOptions(steps=2, batch_size=64, device=device, precision="32", threads=1),
        options=known.model_validate({"encoder": encoder}),
    )
    return fit(config, screen.path, out, quiet=True)


@torch.inference_mode()
def forward(run: Run, screen: Screen, device: str, precision: Precision, threads: int) -> Rate:
    """Of the method alone on one batch, again and again."""
    fabric = start_fabric(device, precision, threads, alone=True)
    method, intensity = run.load(screen)
    method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    reader = BatchReader(screen, intensity=intensity, device=fabric.device)
    size = batch_size(device)
    batch = reader.read(np.arange(size, dtype=np.int64))

    def repeat(times: int, batch: Batch) -> Rate:
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(times):
            with fabric.autocast():
                embedded, _ = represent(method, batch, None)
        next(iter(embedded.values())).sum().item()  # waits for the device
        images = times * size
        return Rate(
            images / (time.perf_counter() - started), images / (time.process_time() - worked)
        )

    repeat(3, batch)
    few = repeat(3, batch)
    rate = few.processor if device == "cpu" else few.clock
    return repeat(max(3, int(rate * SECONDS[device] / 2 / size)), batch)


def embedded(
    run: Run, screen: Screen, out: Path, device: str, precision: Any, threads: int
) -> dict[str, float]:
    """Rates of `embed`: as it says itself, of the whole call, and by the processor's time."""
    said: list[str] = []
    started, worked = time.perf_counter(), time.process_time()
    embed_shards(
        run.path, screen.path, out, device=device, precision=precision, threads=threads, quiet=True,
        say=said.append,
    )  # fmt: skip
    found = re.search(r"([\d,]+) images/s", said[0])
    assert found is not None
    return {
        "said": float(found[1].replace(",", "")),
        "whole_call": len(screen) / (time.perf_counter() - started),
        "processor": len(screen) / Timed.processor,
        "whole_call_processor": len(screen) / (time.process_time() - worked),
    }


def measure(
    encoder: str, device: str, precision: Any, threads: int, folder: Path
) -> dict[str, float]:
    """Rates of one encoder and of embed with it, in images a second."""
    one = make_screen(folder / "one")
    run = make_run(one, encoder, device, folder / "run")
    alone = [forward(run, one, device, precision, threads)]
    rate_alone = alone[0].processor if device == "cpu" else alone[0].clock
    rows = min(MOST_ROWS, int(rate_alone * SECONDS[device]))
    screen = repeated(one, folder / "screen", max(1, rows // FILE_ROWS))
    found = []
    for number in range(ROUNDS):
        found.append(embedded(run, screen, folder / f"e{number}", device, precision, threads))
        alone.append(forward(run, one, device, precision, threads))
    rate = {name: max(one[name] for one in found) for name in found[0]}
    clock, processor = max(a.clock for a in alone), max(a.processor for a in alone)
    report = {
        "images": len(screen),
        "encoder_images_per_s": clock,
        "embed_images_per_s": rate["said"],
        "ratio": rate["said"] / clock,
        "whole_call_images_per_s": rate["whole_call"],
    }
    if device == "cpu":
        report["encoder_images_per_processor_s"] = processor
        report["embed_images_per_processor_s"] = rate["processor"]
        report["processor_ratio"] = rate["processor"] / processor
        report["whole_call_processor_ratio"] = rate["whole_call_processor"] / processor
    return report


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=list(SECONDS), default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--threads", type=int, default=1, help="of the network, on a CPU")
    parser.add_argument("--encoders", nargs="+", help="small on a CPU, resnet18 too on a GPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, precision, threads = arguments.device, arguments.precision, arguments.threads
    vars(importlib.import_module("deconfound.embeddings.embed"))["EmbeddingStream"] = Timed
    fabric = start_fabric(device, precision, threads, alone=True)
    report: dict[str, Any] = {
        "device": device_name(fabric), "precision": precision,
        "batch": batch_size(device),
        "image_shape": SHAPE,
    }  # fmt: skip
    for encoder in arguments.encoders or (["small"] if device == "cpu" else ["small", "resnet18"]):
        with tempfile.TemporaryDirectory() as folder:
            report[encoder] = measure(encoder, device, precision, threads, Path(folder))
        print(encoder, json.dumps(report[encoder]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
