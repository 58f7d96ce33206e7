"""The batches of a stage: which rows they hold, and how these are drawn."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from deconfound.arrays import Mask, Rows
from deconfound.config import TrainingOptions
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.loading.intensity import Intensity, learn_unseen
from deconfound.data.loading.sampler import (
    EnvironmentBalancedSampler,
    JoinedSampler,
    LabelBalancedSampler,
    PlainSampler,
    Sampler,
    UniformSampler,
)
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import DrawnOver, Stage
from deconfound.runs.config import RunConfig
from deconfound.runtime.seeds import derived_seed
from deconfound.training.episodes import episode_sampler


def refuse_unfillable_batches(training: TrainingOptions, problem: Problem) -> None:
    """Raise UserError if a batch exceeds the training rows, or is smaller than the labels or the
    environments that its sampler puts into each batch.
    """
    size, rows = training.batch_size, len(problem.fold.rows("train"))
    labels = min(training.classes_per_batch, len(problem.label.names))
    environments = len(problem.environment.names)
    if size > rows:
        raise UserError(f"--batch-size {size}: training has {rows} rows; lower it")
    if training.sampler == "label_balanced" and size < labels:
        raise UserError(
            f"--batch-size {size}: cannot hold an image of each of {labels} labels; raise it, or "
            "lower --classes-per-batch"
        )
    if training.sampler == "environment_balanced" and size < environments:
        raise UserError(
            f"--batch-size {size}: cannot hold an image of each of {environments} environments; "
            "raise it"
        )


def reader_of(
    config: RunConfig, screen: Screen, problem: Problem, intensity: Intensity, device: torch.device
) -> BatchReader:
    """Reads rows of a screen; labels and environments are those of training and val rows alone.

    Where the method sees test rows, these are made alike by the statistics of their own groups.
    """
    known = np.isin(problem.fold.part, ("train", "val"))
    group = None if problem.group is None else problem.group.codes
    if group is not None and problem.standardise_by and config.options.sees_held_out:
        intensity, test = copy.deepcopy(intensity), problem.fold.part == "test"
        every = screen.coded(problem.standardise_by)
        counted = test if problem.reference is None else test & problem.reference
        every = every._replace(codes=np.where(test, every.codes, -1))
        rows = np.flatnonzero(counted)
        group = learn_unseen(intensity, screen, every, group, rows, config.seed)
    return BatchReader(
        screen,
        label=np.where(known, problem.label.codes, -1),
        environment=np.where(known, problem.environment.codes, -1),
        intensity=intensity,
        device=device,
        group=group,
    )


def sampler_of(
    config: RunConfig,
    problem: Problem,
    part: Literal["train", "val"],
    stage: Stage,
    negative: Mask | None = None,
) -> Sampler:
    """Draws the batches of a part; training batches also test rows, if the method sees them.

    `negative` (N,) is that of `negative_controls`, which training episodes need.
    """
    if part == "train" and stage.episodes:
        return episode_sampler(config, problem, stage, negative)
    sampler = _part_sampler(config, problem, part, stage)
    if part == "val" or not config.options.sees_held_out:
        return sampler
    size = _size(config, stage)
    seed = derived_seed(config.seed, "held out", stage.name)
    return JoinedSampler(sampler, PlainSampler(problem.fold.rows("test"), size, seed))


def _part_sampler(
    config: RunConfig, problem: Problem, part: Literal["train", "val"], stage: Stage
) -> Sampler:
    training = config.training
    size = _size(config, stage)
    rows: Rows = problem.fold.rows(part)
    seed = derived_seed(config.seed if part == "train" else 0, part, stage.name)
    if stage.draws is not None:
        own = UniformSampler(rows, _codes(problem, stage.draws)[rows], size, seed, "own")
        if stage.partner is None:
            return own
        over, draws = _codes(problem, stage.partner)[rows], stage.partner_draws
        return JoinedSampler(own, UniformSampler(rows, over, size, seed, "partner", draws))
    if training.sampler == "label_balanced":
        label = problem.label.codes[rows]
        return LabelBalancedSampler(rows, label, size, training.classes_per_batch, seed)
    if training.sampler == "label_uniform":
        return UniformSampler(rows, problem.label.codes[rows], size, seed, "own")
    if training.sampler == "environment_balanced":
        environment = problem.environment.codes[rows]
        return EnvironmentBalancedSampler(rows, environment, size, seed)
    return PlainSampler(rows, size, seed)


def _size(config: RunConfig, stage: Stage) -> int:
    return stage.batch_size or config.training.batch_size


def _codes(problem: Problem, over: DrawnOver) -> Rows:
    """(N,) the group of every row of the screen, −1 where it has none."""
    if over == "control":
        return problem.control
    return problem.label.codes if over == "label" else problem.environment.codes


def with_partners(batch: Batch, stage: Stage) -> Batch:
    """The batch with the number of its partners, in a stage that draws some."""
    if stage.partner is None:
        return batch
    own = len(batch) // (1 + stage.partner_draws)
    return replace(batch, partners=own * stage.partner_draws)


def validation_batches(
    config: RunConfig, problem: Problem, stage: Stage, reader: BatchReader, own: slice
) -> Iterator[tuple[Batch, bool]]:
    """The validation batches, the same every time, and whether each is of full size.

    This process reads the rows `own` of each batch.
    """
    rows = problem.fold.rows("val")
    size = min(_size(config, stage), len(rows))
    count = min(stage.validation_batches, max(1, len(rows) // size))
    weighs_labels = config.training.sampler in ("label_balanced", "label_uniform")
    if weighs_labels or stage.draws is not None:
        sampler = sampler_of(config, problem, "val", stage)
        for batch in reader.stream(sampler.rows(step)[own] for step in range(count)):
            yield with_partners(batch, stage), True
        return
    sampler = PlainSampler(rows, len(rows), 0, "validation")
    chunks = np.split(sampler.rows(0), np.arange(size, len(rows), size))[: count + 1]
    for chunk, batch in zip(chunks, reader.stream(c[own] for c in chunks), strict=True):
        yield batch, len(chunk) == size
