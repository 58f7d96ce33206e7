"""Rendering the cells of a screen in environments, a chunk at a time, bit-reproducibly."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deconfound.arrays import Images, Rows
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.optics import Optics
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


def chunks_by_environment(
    identities: pd.Series, environments: Mapping[str, Optics]
) -> Iterator[tuple[Rows, Optics]]:
    """All rows in their order, in pieces of one environment each; `identities` (N,) names it."""
    changes = np.flatnonzero(identities.ne(identities.shift(fill_value="")).to_numpy(dtype=bool))
    for start, end in zip(changes, [*changes[1:], len(identities)], strict=True):
        rows = np.arange(start, end, dtype=np.int64)
        yield from chunks(rows, environments[str(identities.iloc[start])])


def draw_environments(render: Renderer, identities: pd.Series) -> dict[str, Optics]:
    """The optics of every environment that `identities` (N,) names, its groups joined by "/"."""
    return {one: render.draw(one.split("/")) for one in identities.unique().tolist()}


def render_screen(
    writer: ScreenWriter,
    render: Renderer,
    identities: pd.Series,
    environments: Mapping[str, Optics],
    *,
    title: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Append every cell, in the optics of its environment, to the screen being written."""
    work = chunks_by_environment(identities, environments)
    with Progress(title, len(identities), "cells", quiet=quiet) as progress:
        for images in rendered(render, work, threads):
            writer.append(images)
            progress.update(len(images))


def rendered(
    render: Renderer, work: Iterable[tuple[Rows, Optics]], threads: int | None
) -> Iterator[Images]:
    """The images of every piece of `work`, in order; one BLAS thread makes them reproducible."""
    with threadpool_limits(1, "blas"):
        yield from in_order(lambda piece: render(*piece), work, threads or os.cpu_count() or 1)
