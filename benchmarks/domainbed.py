"""Training steps of ERM on batches balanced over environments: ours, and the loop of DomainBed.

    python benchmarks/domainbed.py --out FILE.json

Both train the same `small` encoder with Adam on batches of 32 images of each of 4 environments, 4 ×
32 × 32 uint8, from the same screen, in one process and by turns. DomainBed (Gulrajani & Lopez-Paz
2021) has a loader of single items for each environment, drawn with replacement, and joins their
batches; here, without its workers, in the same process. Rates are images a second of the
processor's time, which other programs do not stretch; `fed` is of loading alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.loading.sampler import EnvironmentBalancedSampler
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.methods.contract import Task
from deconfound.methods.erm import Erm

IMAGES, ENVIRONMENTS, LABELS, SIZE, EACH = 4_096, 4, 10, 32, 32


class OfEnvironment(Dataset[tuple[Tensor, int]]):
    """Scaled images of one environment with their labels, one at a time."""

    def __init__(
        self, screen: Screen, rows: Any, label: Any, intensity: Intensity, environment: int
    ) -> None:
        self.screen, self.label, self.intensity = screen, label, intensity
        self.rows, self.environment = rows, environment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        row = int(self.rows[item])
        return self.intensity(torch.from_numpy(self.screen.read([row])))[0], int(self.label[row])


def make_screen(path: Path) -> Screen:
    """A screen of noise."""
    stream = np.random.default_rng(0)
    roles = Roles(label="Metadata_Gene", environment=("Metadata_Plate",))
    with ScreenWriter(path, "noise", ("a", "b", "c", "d"), roles, {}) as writer:
        writer.append(stream.integers(0, 256, (IMAGES, 4, SIZE, SIZE), np.uint8))
        columns = {"Metadata_Gene": LABELS, "Metadata_Plate": ENVIRONMENTS}
        drawn = {name: stream.integers(0, most, IMAGES) for name, most in columns.items()}
        writer.finish(pd.DataFrame(drawn).astype(str))
    return open_screen(path)


def fed_by_us(
    screen: Screen, label: Any, environment: Any, intensity: Intensity
) -> Iterator[Batch]:
    """Batches without end."""
    cpu = torch.device("cpu")
    reader = BatchReader(
        screen, label=label, environment=environment, intensity=intensity, device=cpu
    )
    rows = np.arange(len(screen))
    sampler = EnvironmentBalancedSampler(rows, environment, ENVIRONMENTS * EACH, 0)
    with closing(reader.stream(sampler.rows(step) for step in range(10**9))) as batches:
        yield from batches


def fed_by_domainbed(
    screen: Screen, label: Any, environment: Any, intensity: Intensity
) -> Iterator[Batch]:
    """Batches without end, of a loader for each environment."""

    def endless(one: int) -> Iterator[list[Tensor]]:
        data = OfEnvironment(screen, np.flatnonzero(environment == one), label, intensity, one)
        sampler = RandomSampler(data, replacement=True, num_samples=10**6)
        yield from DataLoader(data, batch_size=EACH, sampler=sampler)

    for parts in zip(*(endless(one) for one in range(ENVIRONMENTS)), strict=True):
        image, named = (torch.cat(of) for of in zip(*parts, strict=True))
        known = torch.arange(ENVIRONMENTS).repeat_interleave(EACH)
        yield Batch(image, named, known, torch.full((len(image),), -1))


def trainer(screen: Screen) -> Callable[[Batch], None]:
    """One step of ERM."""
    torch.manual_seed(0)
    options = Erm.Options.model_validate({"encoder": "small"})
    method = Erm(options, Task(len(screen.channels), SIZE, LABELS, ENVIRONMENTS))
    (stage,) = method.stages(1)
    optimizers = [phase.optimizer() for phase in stage.phases]
    method.train()

    def step(batch: Batch) -> None:
        method.step(batch, stage, optimizers, _backward)

    return step


def _backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    torch.autograd.backward(loss, inputs=parameters)


def measure(folder: Path, steps: int, rounds: int = 3) -> dict[str, float]:
    """Images a processor second of both, the best of `rounds`, and ours over DomainBed's."""
    torch.set_num_threads(1)
    screen = make_screen(folder / "screen")
    label, environment = (
        screen.coded([name]).codes for name in ("Metadata_Gene", "Metadata_Plate")
    )
    intensity = fit_intensity(screen, np.arange(len(screen)), "none", "standardise", 0)
    given = screen, label, environment, intensity
    feeds = {"ours": fed_by_us(*given), "domainbed": fed_by_domainbed(*given)}
    work: dict[str, Callable[[Batch], None]] = {"fed": lambda _: None, "trained": trainer(screen)}
    found: dict[str, float] = {}
    for _ in range(rounds):
        for what, does in work.items():
            for who, feed in feeds.items():
                does(next(feed))
                times = steps * (8 if what == "fed" else 1)  # many beside what is read ahead
                started = time.process_time()
                for _ in range(times):
                    does(next(feed))
                rate = times * ENVIRONMENTS * EACH / (time.process_time() - started)
                name = f"{what}_by_{who}_per_s"
                found[name] = max(rate, found.get(name, 0.0))
    for feed in feeds.values():
        feed.close()  # type: ignore[attr-defined]
    for what in work:
        ours, theirs = (found[f"{what}_by_{who}_per_s"] for who in feeds)
        found[f"{what}_ratio"] = ours / theirs
    return found


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(Path(folder), arguments.steps), indent=2) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
