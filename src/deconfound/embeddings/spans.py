"""Spans of a screen embedded into the files of a folder, by this process or by a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deconfound.embeddings.stream import Arrays, EmbeddingStream, Span, StreamOptions
from deconfound.runtime.cluster import Cluster
from deconfound.runtime.progress import Progress

Keep = Callable[[EmbeddingStream, Path, Span, Arrays], None]
"""Writes the embeddings of a span into a folder, whole or not at all."""


@dataclass(frozen=True)
class SpanWorker:
    """Makes what embeds a span, with everything that another process needs to."""

    run: Path
    screen: Path
    folder: Path
    keep: Keep
    options: StreamOptions

    def __call__(self) -> Callable[[Span], int]:
        """What embeds a span and returns its rows."""
        stream = EmbeddingStream(self.run, self.screen, **self.options)

        def embed(span: Span) -> int:
            stream.embed([span], partial(self.keep, stream, self.folder), 0, True)
            return span[1] - span[0]

        return embed


def embed_spans(
    stream: EmbeddingStream,
    spans: list[Span],
    folder: Path,
    keep: Keep,
    *,
    done: int,
    quiet: bool,
    cluster: Cluster | None,
    options: StreamOptions,
) -> None:
    """Embed spans into the files of a folder here, or by the workers of a cluster.

    `done` rows were embedded by earlier calls; `options` are those of `stream`. Raises UserError as
    `Cluster.in_order` does.
    """
    if cluster is None:
        stream.embed(spans, partial(keep, stream, folder), done, quiet)
        return
    threads = options.get("threads") or 1
    options = {**options, "threads": threads}
    worker = SpanWorker(
        stream.run.path.resolve(), stream.screen.place, folder.resolve(), keep, options
    )
    total = done + sum(stop - start for start, stop in spans)
    with Progress(f"embed {stream.screen.name}", total, stream.unit, done, quiet) as progress:
        for rows in cluster.in_order(worker, spans, threads=threads, named=_named):
            progress.update(rows)


def _named(span: Span) -> str:
    return f"rows {span[0]:,} to {span[1] - 1:,}"
