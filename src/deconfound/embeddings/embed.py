"""embed: representations or profiles of every row of a screen; a killed call resumes."""

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256 as digest
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.readers.embedded import INDEX
from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.shards import Shard
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.embeddings.shards import (
    FORMAT_VERSION,
    ShardsIndex,
    metadata_names,
    open_index,
    write_index,
    write_shard,
)
from deconfound.embeddings.spans import embed_spans
from deconfound.embeddings.stream import (
    CODES,
    Arrays,
    EmbeddingStream,
    Span,
    StreamOptions,
    spans_of,
)
from deconfound.errors import UserError
from deconfound.files import atomic, lock
from deconfound.files.checksums import sha256
from deconfound.runs.record import software
from deconfound.runtime import stop
from deconfound.runtime.cluster import Cluster
from deconfound.runtime.device import Processes, processes

CHUNK = 8192
SHARD_ROWS = 65_536
PROFILES = "profiles"
"""Name of the method of embeddings that are profiles, unchanged."""
MOST_ROWS = 2_000_000
"""Most rows of one file, which is assembled in memory; a directory of shards has no limit."""


@stop.told(stop.RESUMES)
def embed(
    run: Path,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    cluster: Cluster | None = None,
    **options: Unpack[StreamOptions],
) -> Embeddings:
    """Embed all images of `screen` with `run` into the `.h5ad` file `out`.

    Finished chunks are kept beside `out` until it is whole, so a killed call resumes. `say` is
    given a sentence about the speed; `cluster` has the work done by its workers; the options are
    those of `StreamOptions`. Raises UserError if `out` exists, is being written or does not end in
    .h5ad, if the screen has more than `MOST_ROWS` rows, or if run and screen do not fit.
    """
    out = Path(out)
    if out.suffix != ".h5ad":
        raise UserError(
            f"{out}: expected a name ending in .h5ad, or one without an end, for a directory"
        )
    atomic.refuse_existing(out)
    stream = EmbeddingStream(run, screen, **options)
    if len(stream.screen) > MOST_ROWS:
        raise UserError(
            f"{out}: {len(stream.screen):,} rows are too many for one file (at most "
            f"{MOST_ROWS:,}); leave .h5ad out of the name, for a directory of Parquet files"
        )
    with atomic.resumable(out, json.dumps([*stream.identity(), CHUNK])) as chunks:
        _embed_chunks(stream, chunks, quiet, cluster, options)
        whole = stream.assembled([load_file(_chunk(chunks, span)) for span in _spans(stream)])
        write_embeddings(out, whole)
    if say is not None and stream.rows:
        say(stream.speed())
    return read_embeddings(out)


def _embed_chunks(
    stream: EmbeddingStream,
    chunks: Path,
    quiet: bool,
    cluster: Cluster | None,
    options: StreamOptions,
) -> None:
    missing = [span for span in _spans(stream) if not _chunk(chunks, span).is_file()]
    done = len(stream.screen) - sum(stop - start for start, stop in missing)
    embed_spans(
        stream, missing, chunks, _keep_chunk,
        done=done, quiet=quiet, cluster=cluster, options=options,
    )  # fmt: skip


def _keep_chunk(_: EmbeddingStream, chunks: Path, span: Span, arrays: Arrays) -> None:
    with atomic.atomic_file(_chunk(chunks, span)) as temporary:
        save_file(arrays, temporary)


def _spans(stream: EmbeddingStream) -> list[Span]:
    return spans_of(len(stream.screen), CHUNK)


def _chunk(chunks: Path, span: Span) -> Path:
    return chunks / f"{span[0]:012d}.safetensors"


class _Done(BaseModel):
    """What the note beside a whole shard holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    bytes: int
    representations: dict[str, int]


@stop.told(stop.RESUMES)
def embed_shards(
    run: Path,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    cluster: Cluster | None = None,
    **options: Unpack[StreamOptions],
) -> ShardsIndex | None:
    """Embed all images of `screen` with `run` into `out`, a directory of Parquet files.

    Each file has `SHARD_ROWS` rows, in the order of the screen: the columns of its table, called
    Metadata_…, and one column for each feature. Under torchrun or srun each process embeds its
    share of the files; the process that finishes last publishes `out`, and the others return None.
    Finished files are kept beside `out` until it is whole, so the same command resumes after a
    process was killed, also with another number of processes. `cluster`, `say` and the options are
    as of `embed`; the workers share the folder of `out`.

    Raises UserError if `out` exists and holds embeddings of another run, screen or option, if
    another command is writing it, or if run and screen do not fit.
    """
    out, own = Path(out), processes()
    if own.world == 1 or (out.exists() and not (out / INDEX).is_file()):
        atomic.refuse_existing(out)
    stream = EmbeddingStream(run, screen, **options)
    made_of = json.dumps([*stream.identity(), SHARD_ROWS])
    with atomic.resumable_together(out, made_of) as folder:
        if not (whole := out.exists()):
            _embed_missing(stream, folder, own, quiet, cluster, options)
            with lock.in_turn(folder / "publishing"):
                whole = _published(stream, folder, out, made_of)
        index = open_index(out) if whole else None
        if index is not None and index.made_of != digest(made_of.encode()).hexdigest():
            raise UserError(
                f"{out}: holds embeddings of another run, screen or option; remove it or choose "
                "another --out"
            )
    if say is not None and stream.rows:
        say(stream.speed())
    return index


def _embed_missing(
    stream: EmbeddingStream,
    folder: Path,
    own: Processes,
    quiet: bool,
    cluster: Cluster | None,
    options: StreamOptions,
) -> None:
    """Write the shards of this process that are not there yet."""
    (folder / "shards").mkdir(exist_ok=True)
    spans = spans_of(len(stream.screen), SHARD_ROWS)[own.rank :: own.world]
    missing = [span for span in spans if _done(folder, span) is None]
    done = sum(stop - start for start, stop in spans if (start, stop) not in missing)
    embed_spans(
        stream, missing, folder, partial(_write, SHARD_ROWS),
        done=done, quiet=quiet or own.rank > 0, cluster=cluster, options=options,
    )  # fmt: skip


def _write(size: int, stream: EmbeddingStream, folder: Path, span: Span, arrays: Arrays) -> None:
    """Write a shard of `size` rows, and then the note that says it is whole."""
    codes = arrays.pop(CODES, None)
    floats = {name: values.astype(np.float32, copy=False) for name, values in arrays.items()}
    table = stream.table(span, stream.parts, None if codes is None else codes.astype(np.int64))
    file = folder / "shards" / _name(span, size)
    with atomic.atomic_file(file) as temporary:
        write_shard(temporary, table, floats)
    shard = Shard(file=file.name, rows=span[1] - span[0], sha256=sha256(file))
    widths = {name: values.shape[1] for name, values in arrays.items()}
    note = _Done(shard=shard, bytes=file.stat().st_size, representations=widths)
    atomic.write_text(_note(folder, span, size), note.model_dump_json())


def _done(folder: Path, span: Span) -> _Done | None:
    """The note of a shard; None if the shard is missing or cut short."""
    try:
        note = _Done.model_validate_json(_note(folder, span, SHARD_ROWS).read_bytes())
        whole = (folder / "shards" / note.shard.file).stat().st_size == note.bytes
    except (OSError, ValueError):
        return None
    return note if whole else None


def _published(stream: EmbeddingStream, folder: Path, out: Path, made_of: str) -> bool:
    """Publish `out` if all shards are there, unless a process has; whether it is published."""
    if out.exists():
        return True
    notes = [_done(folder, span) for span in spans_of(len(stream.screen), SHARD_ROWS)]
    found = [note for note in notes if note is not None]
    if len(found) < len(notes):
        return False
    index = ShardsIndex(
        format_version=FORMAT_VERSION,
        rows=len(stream.screen),
        columns=metadata_names([*map(str, stream.screen.table.columns), PART, PREDICTED]),
        representations=found[0].representations,
        shards=tuple(note.shard for note in found),
        made_of=digest(made_of.encode()).hexdigest(),
        about=stream.about(),
    )
    write_index(folder / "shards", index)
    atomic.remove_leftovers(folder / "shards")
    atomic.publish(folder / "shards", out)
    return True


def _name(span: Span, size: int) -> str:
    return f"part-{span[0] // size:05d}.parquet"


def _note(folder: Path, span: Span, size: int) -> Path:
    return folder / f"{_name(span, size)}.json"


def profiles(screen: Path, out: Path, data: DataOptions | None = None) -> Embeddings:
    """Write the profiles of `screen` and the parts of a fold as an embeddings file `out`.

    This is the baseline of untrained features: "representation" holds the profiles unchanged, and
    no label is predicted. `correct` and `measure` take the file like any other. Raises UserError
    if `out` exists or is being written, for a screen of images, and for what `pose` refuses.
    """
    data, out = data or DataOptions(), Path(out)
    if out.suffix != ".h5ad":
        raise UserError(f"{out}: expected a name ending in .h5ad")
    with atomic.claimed(out):
        opened = open_screen(screen)
        if not opened.holds_profiles:
            raise UserError(
                f"{opened.path}: holds images; measure their features with "
                "`deconfound ingest cellprofiler`, or train a method and `deconfound embed`"
            )
        if data.standardise_by is not None:
            raise UserError(
                f"--standardise-by {data.standardise_by}: profiles are taken as they are; leave it "
                "out, and correct them with `deconfound correct standardise`"
            )
        problem = pose(opened, data)
        values = opened.read(np.arange(len(opened))).astype(np.float32)
        table = opened.table.copy()
        table[PART] = problem.fold.part
        table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
        about = {
            "method": PROFILES,
            "saw_held_out": False,
            "fold": problem.fold.name,
            "seed": 0,
            "run": None,
            "screen": opened.name,
            "screen_identity": opened.identity,
            "selection": "none",
            "roles": problem.roles.model_dump(mode="json"),
            "labels": list(problem.label.names),
            "environments": list(problem.environment.names),
            "config": {
                "method": PROFILES, "seed": 0, "options": {}, "data": data.model_dump(mode="json"),
            },
            "software": software(),
        }  # fmt: skip
        made = Embeddings(table, {"representation": values}, about)
        write_embeddings(out, made)
    return made
