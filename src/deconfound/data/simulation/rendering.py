"""Rendering the cells of a screen in environments, a chunk at a time, bit-reproducibly."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deconfound.arrays import Images, Rows
from deconfound.config import TransformName
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.optics import Optics
from deconfound.data.tables.table import Roles, joined
from deconfound.runtime.prefetch import in_order
from deconfound.runtime.progress import Progress

CHUNK = 128  # cells rendered at a time


class Renderer(Protocol):
    """Renders cells of a screen; everything random comes from (seed, cell)."""

    def __call__(self, rows: Rows, optics: Optics) -> Images:
        """The cells of `rows` as `optics` record them: (B, C, H, W), the screen's dtype."""

    def draw(self, environment: Sequence[str]) -> Optics:
        """The optics of an environment, given by its groups, outermost first."""


def chunks(rows: Rows, optics: Optics) -> Iterator[tuple[Rows, Optics]]:
    """`rows` (N,) in pieces of at most `CHUNK`, each with `optics`."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK], optics


def render_screen(
    out: Path,
    render: Renderer,
    table: pd.DataFrame,
    roles: Roles,
    channels: Sequence[str],
    provenance: dict[str, Any],
    *,
    title: str,
    threads: int | None,
    quiet: bool,
    percentiles: tuple[TransformName, str | None] = ("none", None),
    files: Mapping[str, str] | None = None,
) -> Screen:
    """Write every cell of `table`, in the optics of its environment, as a screen at `out`.

    The optics of every environment are added to the provenance. `percentiles` are the screen's
    transform and the column of its groups; `files` are texts beside its own, by name.
    """
    identities = joined(table, roles.levels)
    optics = {one: render.draw(one.split("/")) for one in identities.unique().tolist()}
    provenance["environments"] = {name: one.as_dict() for name, one in optics.items()}
    changes = np.flatnonzero(identities.ne(identities.shift(fill_value="")).to_numpy(dtype=bool))
    work = (
        piece
        for start, end in zip(changes, [*changes[1:], len(table)], strict=True)
        for piece in chunks(np.arange(start, end), optics[str(identities.iloc[start])])
    )
    with ScreenWriter(out, out.name, channels, roles, provenance) as writer:
        for name, text in (files or {}).items():
            (writer.kept / name).write_text(text, encoding="utf-8")
        with Progress(title, len(table), "cells", quiet=quiet) as progress:
            for images in rendered(render, work, threads):
                writer.append(images)
                progress.update(len(images))
        writer.finish(table, *percentiles)
    return open_screen(out)


def rendered(
    render: Renderer, work: Iterable[tuple[Rows, Optics]], threads: int | None
) -> Iterator[Images]:
    """The images of every piece of `work`, in order; one BLAS thread makes them reproducible."""
    with threadpool_limits(1, "blas"):
        yield from in_order(lambda piece: render(*piece), work, threads or os.cpu_count() or 1)
