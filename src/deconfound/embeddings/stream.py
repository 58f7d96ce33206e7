"""A run and a screen, opened: the embeddings of its rows as a stream of parts, in order."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from deconfound.arrays import Rows
from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import open_screen
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.files.checksums import sha256
from deconfound.intervention.at_test_time import correction_of, represent
from deconfound.intervention.intervention import WEIGHTS
from deconfound.runs.run import group_codes, open_run, read_json, software
from deconfound.runtime.device import Precision, device_name, start_fabric_alone
from deconfound.runtime.progress import Progress

BATCH, GPU_BATCH = 64, 512
"""Images embedded at a time; few on a CPU, whose caches then hold their maps."""
CODES = "predicted"
"""Name of the predicted labels, beside those of the representations."""

Arrays = dict[str, npt.NDArray[np.generic]]
Span = tuple[int, int]
"""First row, and the one after the last."""


class EmbeddingStream:
    """Embeds rows of a screen with a run, a part at a time, in constant memory.

    Raises UserError as `embed` does.
    """

    def __init__(
        self,
        run: Path,
        screen: Path,
        selection: str | None,
        device: str,
        precision: Precision,
        threads: int | None,
    ) -> None:
        self.run, self.screen = open_run(run), open_screen(screen)
        self.selection = selection
        self._precision = precision
        self._fabric = start_fabric_alone(device, precision, threads)
        self._method, intensity = self.run.load(self.screen, selection)
        self._method.to(self._fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._correction = correction_of(self.run, self.screen, self._fabric.device)
        self._reader = BatchReader.of_images(
            self.screen, intensity, self._fabric.device, group=group_codes(self.run, self.screen)
        )
        self.rows = 0
        """Rows embedded so far."""
        self.seconds = 0.0
        """Spent on them."""

    @property
    def unit(self) -> str:
        """What a row of the screen is."""
        return "profiles" if self.screen.holds_profiles else "images"

    def identity(self) -> list[object]:
        """What embeddings depend on."""
        run = self.run
        model = sha256(run.path / "model.safetensors")
        found: list[object] = [model, self.screen.identity, self.selection, self._precision]
        if run.config.imputer is not None:
            bank = sha256(run.path / WEIGHTS)
            asked = run.config.intervention
            found += [bank, asked.correction_draws, run.config.seed]
            found += ["mean"] if asked.impute_into == "mean" else []
        return found

    @torch.inference_mode()
    def embed(
        self, spans: list[Span], keep: Callable[[Span, Arrays], None], done: int, quiet: bool
    ) -> None:
        """Embed `spans` of rows and hand each, in order, to `keep`.

        `keep` gets the representations (B, D) float32 by name and, where the method predicts,
        `CODES` (B,) int64; it works in a thread beside the next span. `done` rows were embedded
        before.
        """
        started = time.perf_counter()
        total = done + sum(stop - start for start, stop in spans)
        size = batch_size(self._fabric.device.type)
        batches = self._reader.stream(_batches(spans, size))
        with (
            contextlib.closing(batches),
            _Keeper(keep) as keeper,
            Progress(f"embed {self.screen.name}", total, self.unit, done, quiet) as progress,
        ):
            for span in spans:
                found: dict[str, list[torch.Tensor]] = {}
                for _ in _batches([span], size):
                    batch = next(batches)
                    with self._fabric.autocast():
                        embedded, predicted = represent(self._method, batch, self._correction)
                    named = {name: values.float() for name, values in embedded.items()}
                    if predicted is not None:
                        named[CODES] = predicted.long()
                    for name, values in named.items():
                        found.setdefault(name, []).append(values)
                    progress.update(len(batch))
                    self.rows += len(batch)
                keeper.take(span, found)
        self.seconds += time.perf_counter() - started

    def speed(self) -> str:
        """What was embedded, in words."""
        rate = self.rows / max(self.seconds, 1e-9)
        return (
            f"{self.rows:,} {self.unit} in {self.seconds:,.1f} s, {rate:,.0f} {self.unit}/s on "
            f"{device_name(self._fabric)}"
        )

    def part(self) -> npt.NDArray[np.str_]:
        """(N,) the fold's part of each row of the screen; "new" for another than trained on."""
        if read_json(self.run.path / "fold.json")["screen_identity"] == self.screen.identity:
            return pose(self.screen, self.run.config.data).fold.part
        return np.full(len(self.screen), "new", dtype="U3")

    def table(self, span: Span, part: npt.NDArray[np.str_], codes: Rows | None) -> pd.DataFrame:
        """Rows of the screen's table with `PART` and `PREDICTED`."""
        rows = slice(*span)
        table = self.screen.table.iloc[rows].copy()
        table[PART] = part[rows]
        if codes is None:
            table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
        else:
            table[PREDICTED] = np.asarray(self.run.labels, dtype=object)[codes]
        return table

    def about(self) -> dict[str, object]:
        """What an embeddings file says of the run."""
        run = self.run
        return {
            "method": run.config.title,
            "saw_held_out": run.config.options.sees_held_out,
            "fold": run.fold,
            "seed": run.config.seed,
            "run": run.path.name,
            "screen": self.screen.name,
            "selection": self.selection or run.config.training.selection,
            "roles": run.roles.model_dump(),
            "labels": run.labels,
            "environments": run.environments,
            "config": run.config.model_dump(mode="json"),
            "software": software(),
            "training": run.provenance(),
        }


class _Keeper:
    """Brings what was computed to the processor and keeps it, in a thread, one span at a time."""

    def __init__(self, keep: Callable[[Span, Arrays], None]) -> None:
        self._keep = keep
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self._finish()

    def take(self, span: Span, found: dict[str, list[torch.Tensor]]) -> None:
        self._finish()
        self._pending = self._pool.submit(self._work, span, found)

    def _finish(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _work(self, span: Span, found: dict[str, list[torch.Tensor]]) -> None:
        arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
        self._keep(span, arrays)


def batch_size(device: str) -> int:
    """Images embedded at a time on a device, such as cpu or cuda."""
    return BATCH if device == "cpu" else GPU_BATCH


def spans_of(rows: int, size: int) -> list[Span]:
    """Consecutive spans of `size` rows, the last one shorter."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _batches(spans: Iterable[Span], size: int) -> Iterator[Rows]:
    for start, stop in spans:
        for first, last in spans_of(stop - start, size):
            yield np.arange(start + first, start + last, dtype=np.int64)
