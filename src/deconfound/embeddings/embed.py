"""embed: the representations of every image of a screen in one file; a killed call resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
from safetensors.numpy import load_file, save_file

from deconfound.embeddings.file import Embeddings, read_embeddings, write_embeddings
from deconfound.embeddings.stream import (
    CODES,
    Arrays,
    EmbeddingStream,
    Span,
    StreamOptions,
    spans_of,
)
from deconfound.errors import UserError
from deconfound.files import atomic

CHUNK = 8192
MOST_ROWS = 2_000_000
"""Most rows of one file, which is assembled in memory; a directory of shards has no limit."""


def embed(
    run: Path,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    **options: Unpack[StreamOptions],
) -> Embeddings:
    """Embed all images of `screen` with `run` into the `.h5ad` file `out`.

    Finished chunks are kept beside `out` until it is whole, so a killed call resumes. `say` is
    given a sentence about the speed; the options are those of `StreamOptions`. Raises UserError if
    `out` exists, is being written or does not end in .h5ad, if the screen has more than `MOST_ROWS`
    rows, or if run and screen do not fit.
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
        _embed_chunks(stream, chunks, quiet)
        write_embeddings(out, _assemble(stream, chunks))
    if say is not None and stream.rows:
        say(stream.speed())
    return read_embeddings(out)


def _embed_chunks(stream: EmbeddingStream, chunks: Path, quiet: bool) -> None:
    missing = [span for span in _spans(stream) if not _chunk(chunks, span).is_file()]
    done = len(stream.screen) - sum(stop - start for start, stop in missing)

    def keep(span: Span, arrays: Arrays) -> None:
        with atomic.atomic_file(_chunk(chunks, span)) as temporary:
            save_file(arrays, temporary)

    stream.embed(missing, keep, done, quiet)


def _assemble(stream: EmbeddingStream, chunks: Path) -> Embeddings:
    loaded = [load_file(_chunk(chunks, span)) for span in _spans(stream)]
    arrays = {name: np.concatenate([chunk[name] for chunk in loaded]) for name in loaded[0]}
    codes = arrays.pop(CODES, None)
    table = stream.table((0, len(stream.screen)), stream.run.parts(stream.screen), codes)
    return Embeddings(table, arrays, stream.about())


def _spans(stream: EmbeddingStream) -> list[Span]:
    return spans_of(len(stream.screen), CHUNK)


def _chunk(chunks: Path, span: Span) -> Path:
    return chunks / f"{span[0]:012d}.safetensors"
