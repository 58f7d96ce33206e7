"""Training batches made of episodes, each of rows of one environment."""

from dataclasses import replace

import numpy as np

from deconfound.arrays import Mask, Rows
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.batch import Batch
from deconfound.data.loading.sampler import EpisodeSampler, Sampler
from deconfound.data.loading.standardisation import FEWEST
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.methods.contract import Stage
from deconfound.runs.config import RunConfig
from deconfound.runs.context import OF_TRAINING, episode_size, negative_controls, warn_of
from deconfound.runtime.seeds import derived_seed


def refuse_unfit_episodes(config: RunConfig, screen: Screen, problem: Problem) -> None:
    """Raise UserError if an episode would have one image, or if an environment lacks controls.

    Nothing is refused of a method without episodes. An InputWarning names training environments
    with too few rows for statistics of their own.
    """
    asked = config.options.context
    if asked is None:
        return
    names, size = problem.environment.names, config.training.batch_size
    if episode_size(asked, size, len(names)) < 2:
        raise UserError(
            f"--batch-size {size}: {min(asked.episodes, len(names))} episodes need two images each "
            "or more; raise it, or lower --episodes"
        )
    negative = negative_controls(config, screen, problem.roles.label)
    if negative is not None:
        without = [
            name for name, rows in zip(names, _counts(problem, negative), strict=True) if not rows
        ]
        if without:
            raise UserError(
                f"{config.method}: training has no negative control of {listed(without, 5)}; "
                "choose another --environment, or the method armbn, which needs none"
            )
    counts = _counts(problem, None)
    few = [f"{name} ({n})" for name, n in zip(names, counts, strict=True) if n < FEWEST]
    lacks = f"fewer than {FEWEST} training rows for batch statistics of"
    warn_of(screen, few, lacks, f"in validation and embedding {OF_TRAINING}")


def _counts(problem: Problem, counted: Mask | None) -> Rows:
    """Training rows (E,) of each environment; of those `counted` (N,)."""
    train = problem.fold.rows("train")
    codes = problem.environment.codes[train if counted is None else train[counted[train]]]
    return np.bincount(codes[codes >= 0], minlength=len(problem.environment.names))


def episode_sampler(
    config: RunConfig, problem: Problem, stage: Stage, negative: Mask | None
) -> EpisodeSampler:
    """Draws training batches of episodes; `negative` (N,) is that of `negative_controls`."""
    asked = config.options.context
    assert asked is not None
    rows, many = problem.fold.rows("train"), len(problem.environment.names)
    return EpisodeSampler(
        rows,
        problem.environment.codes[rows],
        min(asked.episodes, many),
        episode_size(asked, stage.batch_size or config.training.batch_size, many),
        derived_seed(config.seed, "train", stage.name),
        None if negative is None else negative[rows],
        asked.controls,
    )


def without_joined_labels(batch: Batch, sampler: Sampler, rank: int, ranks: int) -> Batch:
    """The batch of one of several processes; controls that only join an episode lose their label.

    So they count in its statistics and in no loss.
    """
    if not isinstance(sampler, EpisodeSampler):
        return batch
    label = batch.label.clone()
    label[len(range(rank, sampler.own, ranks)) :] = -1
    return replace(batch, label=label)
