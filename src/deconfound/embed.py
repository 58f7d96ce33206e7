"""embed: the representations of every image of a screen, resumable, in constant memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors.numpy import load_file, save_file

from deconfound import atomic, machine
from deconfound.correction import Correction, correction_of, represent
from deconfound.data.batch import BatchReader
from deconfound.data.screen import Rows, Screen, open_screen
from deconfound.data.shards import sha256
from deconfound.embeddings import PART, PREDICTED, Embeddings, read_embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.intervention import WEIGHTS
from deconfound.methods.base import Method
from deconfound.problem import pose
from deconfound.progress import Progress
from deconfound.run import Run, group_codes, open_run, read_json, software

BATCH = 512
CHUNK = 8192


def embed(
    run: Path,
    screen: Path,
    out: Path,
    *,
    selection: str | None = None,
    device: str = "auto",
    precision: machine.Precision = "32",
    threads: int | None = None,
    quiet: bool = False,
) -> Embeddings:
    """Embed all images of `screen` with `run` into the `.h5ad` file `out`.

    Finished chunks are kept beside `out` until it is whole, so a killed call resumes. Raises
    UserError if `out` exists, is being written, does not end in .h5ad, or if run and screen do not
    fit.
    """
    out = Path(out)
    if out.suffix != ".h5ad":
        raise UserError(f"{out}: expected a name ending in .h5ad")
    atomic.refuse_existing(out)
    opened_run, opened_screen = open_run(run), open_screen(screen)
    fabric = machine.start(device, precision, threads)
    method, intensity = opened_run.load(opened_screen, selection)
    method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    correction = correction_of(opened_run, opened_screen, fabric.device)
    nothing = np.full(len(opened_screen), -1, dtype=np.int64)
    reader = BatchReader(
        opened_screen,
        nothing,
        nothing,
        intensity,
        fabric.device,
        channels_last=True,
        group=group_codes(opened_run, opened_screen),
    )
    with atomic.resumable(
        out, _identity(opened_run, opened_screen, selection, precision)
    ) as chunks:
        _embed_chunks(opened_screen, method, correction, reader, fabric, chunks, quiet)
        write_embeddings(out, _assemble(opened_run, opened_screen, chunks, selection))
    return read_embeddings(out)


def _identity(run: Run, screen: Screen, selection: str | None, precision: str) -> str:
    """What finished chunks depend on; another call does not go on from them."""
    model = sha256(run.path / "model.safetensors")
    found = [model, screen.identity, selection, precision, CHUNK]
    if run.config.imputer is not None:
        bank = sha256(run.path / WEIGHTS)
        found += [bank, run.config.intervention.correction_draws, run.config.seed]
    return json.dumps(found)


@torch.inference_mode()
def _embed_chunks(
    screen: Screen,
    method: Method,
    correction: Correction | None,
    reader: BatchReader,
    fabric: Fabric,
    chunks: Path,
    quiet: bool,
) -> None:
    missing = [
        start for start in range(0, len(screen), CHUNK) if not _chunk(chunks, start).is_file()
    ]
    done = min(len(screen), CHUNK * (len(range(0, len(screen), CHUNK)) - len(missing)))
    unit = "profiles" if screen.holds_profiles else "images"
    with Progress(f"embed {screen.name}", len(screen), unit, done, quiet) as progress:
        for start in missing:
            found: dict[str, list[np.ndarray]] = {}
            for batch in reader.stream(_batches(start, min(start + CHUNK, len(screen)))):
                with fabric.autocast():
                    embedded, predicted = represent(method, batch, correction)
                if predicted is not None:
                    embedded["predicted"] = predicted
                for name, values in embedded.items():
                    kind = torch.int64 if name == "predicted" else torch.float32
                    found.setdefault(name, []).append(values.to("cpu", kind).numpy())
                progress.update(len(batch))
            with atomic.atomic_file(_chunk(chunks, start)) as temporary:
                save_file({n: np.concatenate(parts) for n, parts in found.items()}, temporary)


def _assemble(run: Run, screen: Screen, chunks: Path, selection: str | None) -> Embeddings:
    loaded = [load_file(_chunk(chunks, start)) for start in range(0, len(screen), CHUNK)]
    arrays = {name: np.concatenate([chunk[name] for chunk in loaded]) for name in loaded[0]}
    predicted = arrays.pop("predicted", None)
    table = screen.table.copy()
    fold = read_json(run.path / "fold.json")
    if fold["screen_identity"] == screen.identity:
        table[PART] = pose(screen, run.config.data).fold.part
    else:
        table[PART] = "new"
    if predicted is None:
        table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
    else:
        table[PREDICTED] = np.asarray(run.labels, dtype=object)[predicted]
    about = {
        "method": run.config.title,
        "saw_held_out": run.config.options.sees_held_out,
        "fold": run.fold,
        "seed": run.config.seed,
        "run": run.path.name,
        "screen": screen.name,
        "selection": selection or run.config.training.selection,
        "roles": run.roles.model_dump(),
        "labels": run.labels,
        "environments": run.environments,
        "config": run.config.model_dump(mode="json"),
        "software": software(),
        "training": run.provenance(),
    }
    return Embeddings(table, arrays, about)


def _batches(start: int, stop: int) -> Iterator[Rows]:
    for first in range(start, stop, BATCH):
        yield np.arange(first, min(first + BATCH, stop), dtype=np.int64)


def _chunk(chunks: Path, start: int) -> Path:
    return chunks / f"{start:012d}.safetensors"
