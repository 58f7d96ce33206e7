"""The embeddings of the rows of a screen, computed span by span in constant memory."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from deconfound.arrays import Rows
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.numbers import numbered
from deconfound.embeddings.file import PART, PREDICTED, Embeddings
from deconfound.files.checksums import sha256
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.intervention.intervention import WEIGHTS
from deconfound.runs.config import HELD_OUT_NOTES
from deconfound.runs.record import software
from deconfound.runs.run import open_run
from deconfound.runtime.device import Precision, device_name, start_fabric
from deconfound.runtime.prefetch import in_order
from deconfound.runtime.progress import Progress

BATCH, GPU_BATCH = 64, 512
"""Images embedded at a time; few on a CPU, so that their feature maps fit its caches."""
CODES = "predicted"
"""Name under which the predicted labels stand beside the representations."""

TIMES = ("training_seconds", "finished")
"""Entries of a run's provenance that differ where the same run is done again."""

Arrays = dict[str, npt.NDArray[np.generic]]
Span = tuple[int, int]
"""First row, and the one after the last."""
Result = tuple[Span, dict[str, list[torch.Tensor]]]
"""A span and, by name, a tensor for each batch, on the device of the network."""


class StreamOptions(TypedDict, total=False):
    """How a run embeds a screen."""

    selection: str | None
    """"loss", "accuracy" or "last" for another checkpoint than the one that the run selected."""
    device: str
    """Where the network runs: auto, cpu, cuda or mps; auto if not given."""
    precision: Precision
    """Precision of the network; "32" if not given."""
    threads: int | None
    """Processor threads; all cores if not given."""


class EmbeddingStream:
    """Embeds spans of rows of a screen with a run, in constant memory.

    Raises UserError if run and screen do not fit.
    """

    def __init__(self, run: Path, screen: Path | Screen, **options: Unpack[StreamOptions]) -> None:
        selection, precision = options.get("selection"), options.get("precision", "32")
        self.run = open_run(run)
        self.screen = screen if isinstance(screen, Screen) else open_screen(screen)
        self._table = numbered(self.screen.table, self.run.roles.columns())
        self.selection = selection
        self._precision = precision
        self._fabric = start_fabric(
            options.get("device", "auto"), precision, options.get("threads"), alone=True
        )
        self._embedder = Embedder.of_run(self.run, self.screen, self._fabric, selection)
        self.rows = 0
        """Rows embedded so far."""
        self.seconds = 0.0
        """Time that embedding them took."""

    @cached_property
    def parts(self) -> npt.NDArray[np.str_]:
        """(N,) the fold's part of each row, worked out when it is first asked for."""
        return self.run.parts(self.screen)

    @property
    def unit(self) -> str:
        """What a row of the screen is."""
        return "profiles" if self.screen.holds_profiles else "images"

    def identity(self) -> list[object]:
        """Everything that the embeddings depend on; equal lists mean equal embeddings."""
        run = self.run
        model = sha256(run.path / "model.safetensors")
        found: list[object] = [model, self.screen.identity, self.selection, self._precision]
        if run.config.imputer is not None:
            bank = sha256(run.path / WEIGHTS)
            asked = run.config.intervention
            found += [bank, asked.correction_draws, run.config.seed]
            found += ["mean"] if asked.impute_into == "mean" else []
        return found

    def embed(
        self, spans: list[Span], keep: Callable[[Span, Arrays], None], done: int, quiet: bool
    ) -> None:
        """Embed `spans` of rows and hand each, in order, to `keep`.

        `keep` gets the representations (B, D) float32 by name and, where the method predicts,
        `CODES` (B,) int64. It runs in a thread while the next span is embedded. `done` is the
        number of rows embedded by earlier calls.
        """
        started = time.perf_counter()
        total = done + sum(stop - start for start, stop in spans)

        def copy(result: Result) -> None:
            span, found = result
            keep(span, {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()})

        with (
            Progress(f"embed {self.screen.name}", total, self.unit, done, quiet) as progress,
            contextlib.closing(self._results(spans, progress)) as results,
        ):
            for _ in in_order(copy, results, 1, ahead=1):
                pass
        self.seconds += time.perf_counter() - started

    def _results(self, spans: list[Span], progress: Progress) -> Generator[Result, None, None]:
        size = batch_size(self._fabric.device.type)
        with contextlib.closing(self._embedder.stream(_batches(spans, size))) as stream:
            for span in spans:
                found: dict[str, list[torch.Tensor]] = {}
                for rows in _batches([span], size):
                    named, predicted = next(stream)
                    if predicted is not None:
                        named[CODES] = predicted
                    for name, values in named.items():
                        found.setdefault(name, []).append(values)
                    progress.update(len(rows))
                    self.rows += len(rows)
                yield span, found

    def speed(self) -> str:
        """A sentence that says how many rows were embedded, and how fast."""
        rate = self.rows / max(self.seconds, 1e-9)
        return (
            f"{self.rows:,} {self.unit} in {self.seconds:,.1f} s, {rate:,.0f} {self.unit}/s on "
            f"{device_name(self._fabric)}"
        )

    def table(self, span: Span, part: npt.NDArray[np.str_], codes: Rows | None) -> pd.DataFrame:
        """Rows of the screen's table, `numbered`, with `PART` and `PREDICTED`."""
        rows = slice(*span)
        table = self._table.iloc[rows].copy()
        table[PART] = part[rows]
        if codes is None:
            table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
        else:
            table[PREDICTED] = np.asarray(self.run.labels, dtype=object)[codes]
        return table

    def assembled(self, chunks: Sequence[Arrays]) -> Embeddings:
        """The embeddings of the whole screen, of those of its spans in order."""
        arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        codes = arrays.pop(CODES, None)
        table = self.table((0, len(self.screen)), self.parts, codes)
        return Embeddings(table, arrays, self.about())

    def whole(self, size: int, quiet: bool) -> Embeddings:
        """The embeddings of the whole screen, `size` rows a span, in memory."""
        found: list[Arrays] = []

        def keep(_: Span, arrays: Arrays) -> None:
            found.append(dict(sorted(arrays.items())))  # as they are read from a file

        self.embed(spans_of(len(self.screen), size), keep, 0, quiet)
        return self.assembled(found)

    def about(self) -> dict[str, object]:
        """What an embeddings file holds of the run: no times, so the same run gives the same."""
        run = self.run
        notes = run.config.held_out_notes
        told = run.standardise_by or run.config.options.context is not None
        return {
            "method": run.config.title,
            "saw_held_out": bool(notes),
            **({HELD_OUT_NOTES: notes} if told else {}),
            "fold": run.fold,
            "seed": run.config.seed,
            "run": run.path.name,
            "screen": self.screen.name,
            "screen_identity": self.screen.identity,
            "selection": self.selection or run.config.training.selection,
            "roles": run.roles.model_dump(),
            "labels": run.labels,
            "environments": run.environments,
            "config": run.config.model_dump(mode="json"),
            "software": software(),
            "training": {k: v for k, v in run.provenance().items() if k not in TIMES},
        }


def batch_size(device: str) -> int:
    """Images embedded at a time on a device, such as cpu or cuda."""
    return BATCH if device == "cpu" else GPU_BATCH


def spans_of(rows: int, size: int) -> list[Span]:
    """Consecutive spans of `size` rows, the last one shorter."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _batches(spans: Iterable[Span], size: int) -> Iterator[Rows]:
    for start, stop in spans:
        yield from in_batches(np.arange(start, stop, dtype=np.int64), size)
