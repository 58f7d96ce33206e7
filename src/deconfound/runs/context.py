"""Batch statistics of environments: measured by a network on their images, and kept in it."""

import math
import warnings
from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deconfound.arrays import Codes, Floats, Mask, Rows
from deconfound.data.folds.controls import marked_controls
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.standardisation import FEWEST, NAMED, unseen_groups
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning
from deconfound.methods.contract import ContextOptions, Method
from deconfound.nets.context import Moments
from deconfound.runs.config import RunConfig
from deconfound.runs.run import Run
from deconfound.runtime.device import processes
from deconfound.runtime.seeds import numpy_stream

VALUES = 2**22
"""Values of images that are passed through the network at a time."""


class Sample(NamedTuple):
    """Images that the statistics of an environment are taken over."""

    rows: Rows
    """(M,) of the screen, ascending."""
    weight: Floats
    """(M,) float32, which add up to 1."""


def negative_controls(config: RunConfig, screen: Screen, label: str | None) -> Mask | None:
    """(N,) whether each row is a negative control, where the method joins some; else None.

    Raises UserError where controls are not known.
    """
    asked = config.options.context
    if asked is None or not asked.controls:
        return None
    where, remedy = str(screen.path), "use the method armbn, which needs none"
    return marked_controls(screen.table, label, config.data.controls, where, remedy)


def fit_contexts(
    method: Method, reader: BatchReader, config: RunConfig, problem: Problem, negative: Mask | None
) -> None:
    """Measure each training environment on its training rows, in evaluation mode, and all of them.

    `negative` is that of `negative_controls`.
    """
    assert method.context is not None
    train, codes = problem.fold.rows("train"), problem.environment.codes
    many = len(problem.environment.names)
    of_all = _measured(method, reader, config, many, train, negative, "")
    method.context.put(-1, of_all)
    for place, name in enumerate(problem.environment.names):
        rows, found = train[codes[train] == place], of_all
        if len(rows) >= FEWEST:
            found = _measured(method, reader, config, many, rows, negative, name)
        method.context.put(place, found)


def learn_contexts(run: Run, screen: Screen, method: Method, reader: BatchReader) -> Codes | None:
    """The environment (N,) of each row, for `embed_in`; None where nothing adapts to it.

    An environment that training never saw, and every one of a screen that the run was not trained
    on, is first measured on its own images, whatever their part; one with fewer than 16 takes what
    was measured of all training rows, and an InputWarning names it. Raises UserError where the
    screen lacks a column of the environment, or controls that are needed are not known.
    """
    context, config = method.context, run.config
    if context is None:
        return None
    columns = run.roles.environment
    every, known = screen.coded(columns), screen.coded(columns, run.environments).codes
    if not run.trained_on(screen):
        known = np.full_like(known, -1)
    unseen = unseen_groups(every, known)
    if not unseen.names:
        return known
    negative = negative_controls(config, screen, run.roles.label)
    found, few, alone, many = [], [], [], len(run.environments)
    for code, name in enumerate(unseen.names):
        rows = np.flatnonzero(unseen.codes == code)
        if len(rows) < FEWEST:
            few.append(f"{name} ({len(rows)})")
            found.append(context.moments(-1))
            continue
        if negative is not None and not negative[rows].any():
            alone.append(name)
        found.append(_measured(method, reader, config, many, rows, negative, name))
    warn_of(screen, few, f"fewer than {FEWEST} images for batch statistics of", OF_TRAINING)
    warn_of(screen, alone, "no negative control to join the batch statistics of", OF_IMAGES)
    context.extend(found)
    return np.where(unseen.codes >= 0, many + unseen.codes, known)


OF_TRAINING = "those of all training rows stand in"
OF_IMAGES = "they are those of its images alone"


def warn_of(screen: Screen, names: list[str], lacks: str, instead: str) -> None:
    """An InputWarning, in one process of several, that names environments, if there are any."""
    if names and processes().rank == 0:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        listed = f"{', '.join(names[:NAMED])}{more}"
        warnings.warn(f"{screen.path}: {lacks} {listed}: {instead}", InputWarning, stacklevel=3)


def sample_of(
    config: RunConfig, environments: int, rows: Rows, controls: Rows, name: str
) -> Sample:
    """At most `--context-images` of an environment's `rows`, and as many of its `controls`.

    They are drawn by the seed and the name of the environment alone. All rows have one weight, and
    so have all controls: together they weigh what they weigh in an episode of training, which joins
    controls to its share of a batch, or to all `rows` where these are fewer. Where the options
    measure controls alone, 16 of them or more leave no weight to other rows.
    """
    asked = config.options.context
    assert asked is not None
    stream = numpy_stream(config.seed, "context", name)
    own = stream.permutation(rows)[: asked.images]
    joined = stream.permutation(controls)[: asked.images]
    if asked.controls_alone and len(joined) >= FEWEST:
        own = own[:0]
    images = min(len(rows), episode_size(asked, config.training.batch_size, environments))
    share = asked.controls / (asked.controls + images) if len(joined) else 0.0
    drawn = np.concatenate([own, joined])
    share = share if len(own) else 1.0
    each = [(1 - share) / max(1, len(own)), share / max(1, len(joined))]
    weight = np.repeat(each, [len(own), len(joined)]).astype(np.float32)
    order = np.argsort(drawn, kind="stable")
    return Sample(drawn[order], weight[order])


def episode_size(asked: ContextOptions, batch_size: int, environments: int) -> int:
    """Images of an episode, without the controls that join it."""
    return batch_size // min(asked.episodes, environments)


def measured(method: Method, reader: BatchReader, sample: Sample) -> list[Moments]:
    """The statistics of each batch norm of a `method`, in evaluation mode, over a sample.

    Images are read and passed through a few at a time.
    """
    assert method.context is not None
    first = reader.read(sample.rows[:1]).image
    step = max(1, VALUES // math.prod(first.shape))
    cuts = np.arange(step, len(sample.rows), step)
    parts, weights = np.split(sample.rows, cuts), np.split(sample.weight, cuts)

    def chunks() -> Generator[tuple[Tensor, Tensor], None, None]:
        with closing(reader.stream(parts)) as batches:
            for batch, weight in zip(batches, weights, strict=True):
                yield batch.image, torch.from_numpy(weight)

    return method.context.gather(method.embed, chunks, len(parts))


def _measured(
    method: Method,
    reader: BatchReader,
    config: RunConfig,
    environments: int,
    rows: Rows,
    negative: Mask | None,
    name: str,
) -> list[Moments]:
    controls = rows[:0] if negative is None else rows[negative[rows]]
    return measured(method, reader, sample_of(config, environments, rows, controls, name))
