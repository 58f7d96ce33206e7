"""What the workers of a Ray cluster cost beside one process, in seconds of the processor.

    python benchmarks/cluster.py --out benchmarks/results/cluster.json

Ingests files of images, embeds them with SCBD's two `small` encoders into a directory, and scores
the three representations: in one process of one thread, and by one worker of a cluster that is
started here. Each answer of a worker comes with the processor time that it took there, so that
other programs on the machine do not stretch it. `of_one_process` is the time of the worker and of
the process that gives it work, without its start, over that of one process, of two rounds the
better; `start_s` is what a worker takes to import and open what it needs. The files that both
write are compared bit for bit.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.embeddings.embed import embed_shards
from deconfound.evaluation.measure import measure
from deconfound.files.checksums import sha256_of
from deconfound.runs.config import config_model
from deconfound.runtime.cluster import Cluster, connected
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.fit import fit

IMAGES, SHAPE, SHARD_ROWS = 2_048, (4, 64, 64), 256
WORKERS = 1


@dataclass(frozen=True)
class _Timed:
    """Makes a task whose answers come with its seconds, and with those of making it."""

    make: Callable[[], Callable[[Any], Any]]

    def __call__(self) -> Callable[[Any], tuple[Any, float, float]]:
        task = self.make()
        making = [time.process_time()]  # of this worker, from its first import on

        def timed(item: Any) -> tuple[Any, float, float]:
            begun = time.process_time()
            answer = task(item)
            return answer, time.process_time() - begun, making.pop() if making else 0.0

        return timed


@dataclass(frozen=True)
class TimedCluster(Cluster):
    """A cluster that keeps the seconds of its workers."""

    worked: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def in_order(
        self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], **how: Any
    ) -> Generator[Any, None, None]:
        """As it does."""
        for answer, seconds, start in super().in_order(_Timed(make), items, **how):
            self.worked.append(seconds)
            self.starts.extend([start] if start else [])
            yield answer


def write_images(folder: Path) -> Path:
    """Write images of noise as files, and their table."""
    stream = numpy_stream(0, "pixels")
    names = [f"{number // 1000}/{number:05d}.npy" for number in range(IMAGES)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / name, stream.integers(0, 256, SHAPE, dtype=np.uint8))
    table = {
        "Path": names,
        "Metadata_Gene": np.char.add("gene", stream.integers(50, size=IMAGES).astype(str)),
        "Metadata_Well": np.char.add("W", stream.integers(34, size=IMAGES).astype(str)),
    }
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def compared(
    work: Callable[[Path, Cluster | None], Any], folder: Path, name: str
) -> dict[str, float]:
    """Seconds of one process and of a cluster over the same work, which must write the same."""
    here = np.inf
    for out in (f"{name}-first", f"{name}-here"):
        begun = time.process_time()
        work(folder / out, None)
        here = min(here, time.process_time() - begun)
    cluster = TimedCluster(WORKERS)
    begun = time.process_time()
    work(folder / f"{name}-there", cluster)
    driver = time.process_time() - begun
    if sha256_of(folder / f"{name}-here") != sha256_of(folder / f"{name}-there"):
        raise AssertionError(f"{name}: one process and the cluster wrote other bytes")
    worked = sum(cluster.worked)
    Console().print(
        f"{name}: {here:.2f} s here, {worked:.2f} s of workers, {driver:.2f} s for them"
    )
    return {
        "one_process_s": here,
        "workers_s": worked,
        "driver_s": driver,
        "of_one_process": (worked + driver) / here,
        "start_s": float(np.mean(cluster.starts)),
        "items": len(cluster.worked),
    }


def measured(folder: Path) -> dict[str, Any]:
    """The three verbs, one after the other."""
    table = write_images(folder)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"images": IMAGES, "workers": WORKERS}
    config = IngestConfig(
        name="noise",
        channels=("DNA", "ER", "actin", "mito"),
        label="Metadata_Gene",
        environment=("Metadata_Well",),
        threads=1,
    )

    def ingested(out: Path, cluster: Cluster | None) -> None:
        ingest(table, folder, out, config=config, quiet=True, cluster=cluster)

    found["ingest"] = compared(ingested, folder, "screen")
    screen, run = folder / "screen-here", folder / "run"
    training = TrainingOptions(steps=2, batch_size=64, device="cpu", precision="32")
    asked = {"options": {"decoder_steps": 1}, "data": DataOptions(fold="iid"), "training": training}
    fit(config_model("scbd").model_validate({"method": "scbd", **asked}), screen, run, quiet=True)
    vars(importlib.import_module("deconfound.embeddings.embed"))["SHARD_ROWS"] = SHARD_ROWS

    def embedded(out: Path, cluster: Cluster | None) -> None:
        embed_shards(run, screen, out, device="cpu", threads=1, quiet=True, cluster=cluster)

    found["embed"] = compared(embedded, folder, "embeddings")

    def scored(out: Path, cluster: Cluster | None) -> None:
        measure([folder / "embeddings-here"], out, quiet=True, cluster=cluster)

    found["measure"] = compared(scored, folder, "scores")
    return found


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connected(None):
        found = measured(Path(folder))
    names = [name for name, value in found.items() if isinstance(value, dict)]
    table = Table("figure", *names)
    for figure in found[names[0]]:
        table.add_row(figure, *(f"{found[name][figure]:,.3f}" for name in names))
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
