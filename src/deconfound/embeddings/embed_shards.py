"""embed into a directory of shards: constant memory, several processes, resumed by shard."""

import json
from collections.abc import Callable
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from deconfound.data.screens.shards import Shard
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.embeddings.shards import (
    FORMAT_VERSION,
    INDEX,
    ShardsIndex,
    metadata_names,
    open_index,
    write_index,
    write_shard,
)
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
from deconfound.runtime.device import Processes, processes

SHARD_ROWS = 65_536


class _Done(BaseModel):
    """What the note beside a whole shard holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    bytes: int
    representations: dict[str, int]


def embed_shards(
    run: Path,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    **options: Unpack[StreamOptions],
) -> ShardsIndex | None:
    """Embed all images of `screen` with `run` into `out`, a directory of Parquet files.

    Each file has `SHARD_ROWS` rows, in the order of the screen: the columns of its table, called
    Metadata_…, and one column for each feature. Under torchrun or srun each process embeds its
    share of the files; the process that finishes last publishes `out`, and the others return None.
    Finished files are kept beside `out` until it is whole, so the same command resumes after a
    process was killed, also with another number of processes. `say` is given a sentence about the
    speed; the options are those of `StreamOptions`.

    Raises UserError if `out` exists and holds embeddings of another run, screen or option, if
    another command is writing it, or if run and screen do not fit.
    """
    out, own = Path(out), processes()
    if own.world == 1 or (out.exists() and not (out / INDEX).is_file()):
        atomic.refuse_existing(out)
    stream = EmbeddingStream(run, screen, **options)
    made_of = json.dumps([*stream.identity(), SHARD_ROWS])
    with atomic.resumable_together(out, made_of) as folder:
        made = out if out.exists() else None
        if made is None:
            _embed_missing(stream, folder, own, quiet)
            with lock.in_turn(folder / "publishing"):
                made = _published(stream, folder, out, made_of)
        if made is not None:
            _refuse_other(out, made_of)
    if say is not None and stream.rows:
        say(stream.speed())
    return None if made is None else open_index(out)


def _embed_missing(stream: EmbeddingStream, folder: Path, own: Processes, quiet: bool) -> None:
    """Write the shards of this process that are not there yet."""
    (folder / "shards").mkdir(exist_ok=True)
    spans = spans_of(len(stream.screen), SHARD_ROWS)[own.rank :: own.world]
    missing = [span for span in spans if _done(folder, span) is None]
    part = stream.run.parts(stream.screen) if missing else np.empty(0, "U7")

    def keep(span: Span, arrays: Arrays) -> None:
        _write(stream, folder, span, arrays, part)

    done = sum(stop - start for start, stop in spans if (start, stop) not in missing)
    stream.embed(missing, keep, done, quiet or own.rank > 0)


def _write(
    stream: EmbeddingStream,
    folder: Path,
    span: Span,
    arrays: dict[str, npt.NDArray[Any]],
    part: npt.NDArray[np.str_],
) -> None:
    """Write a shard, and then the note that says it is whole."""
    table = stream.table(span, part, arrays.pop(CODES, None))
    file = folder / "shards" / _name(span)
    with atomic.atomic_file(file) as temporary:
        write_shard(temporary, table, arrays)
    shard = Shard(file=file.name, rows=span[1] - span[0], sha256=sha256(file))
    widths = {name: values.shape[1] for name, values in arrays.items()}
    note = _Done(shard=shard, bytes=file.stat().st_size, representations=widths)
    atomic.write_text(_note(folder, span), note.model_dump_json())


def _done(folder: Path, span: Span) -> _Done | None:
    """The note of a shard; None if the shard is missing or cut short."""
    try:
        note = _Done.model_validate_json(_note(folder, span).read_bytes())
        whole = (folder / "shards" / note.shard.file).stat().st_size == note.bytes
    except (OSError, ValueError):
        return None
    return note if whole else None


def _published(stream: EmbeddingStream, folder: Path, out: Path, made_of: str) -> Path | None:
    """Publish `out` if all shards are there, unless a process has; None if some are missing."""
    if out.exists():
        return out
    notes = [_done(folder, span) for span in spans_of(len(stream.screen), SHARD_ROWS)]
    found = [note for note in notes if note is not None]
    if len(found) < len(notes):
        return None
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
    return out


def _refuse_other(out: Path, made_of: str) -> None:
    if open_index(out).made_of != digest(made_of.encode()).hexdigest():
        raise UserError(
            f"{out}: holds embeddings of another run, screen or option; remove it or choose "
            "another --out"
        )


def _name(span: Span) -> str:
    return f"part-{span[0] // SHARD_ROWS:05d}.parquet"


def _note(folder: Path, span: Span) -> Path:
    return folder / f"{_name(span)}.json"
