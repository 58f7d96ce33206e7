"""How many images of a batch have another of their label, and the sampler that follows from it."""

from pathlib import Path

import numpy as np

from deconfound import methods
from deconfound.arrays import Doubles, Rows
from deconfound.config import TrainingOptions
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.sampler import Sampler
from deconfound.runs.config import RunConfig, read_config

FEW = 0.5
"""Share of images with another of their label below which batches are balanced over labels."""
PER_LABEL = 8
"""Images of a label in such a batch: 2,048 of 256 labels in Makino et al., SCBD, A.1.1."""
SIMULATED = 20
"""Batches that shares are counted in."""


def with_sampler(config: RunConfig, problem: Problem, out: Path) -> RunConfig:
    """The configuration with the sampler that the training rows ask for, where none is given.

    A run in `out` that was begun with plain batches, as by an earlier release, goes on with them.
    """
    if config.training.sampler is not None:
        return config
    recorded = out / "config.yaml"
    if recorded.is_file() and read_config(recorded).training.sampler == "plain":
        training = config.training.model_copy(update={"sampler": "plain"})
        return config.model_copy(update={"training": training})
    return sampler_for(config, label_rows(problem), len(problem.fold.rows("train")))


def sampler_for(config: RunConfig, of_label: Rows, rows: int) -> RunConfig:
    """As `with_sampler`, from the training rows of each label (L,) and of all.

    Batches are balanced over labels where the method pulls images of a label together and less than
    half of the images of a plain batch have another of their label; else they are plain.
    """
    training = config.training
    if training.sampler is not None:
        return config
    update: dict[str, object] = {"sampler": "plain"}
    pulls = methods.load(config.method).POSITIVES
    if pulls and plain_share(of_label, training.batch_size, rows) < FEW:
        default = TrainingOptions.model_fields["classes_per_batch"].default
        given = training.classes_per_batch
        most = training.batch_size // (PER_LABEL if given == default else 2)
        update = {"sampler": "label_balanced", "classes_per_batch": max(1, min(given, most))}
    return config.model_copy(update={"training": training.model_copy(update=update)})


def label_rows(problem: Problem) -> Rows:
    """The training rows of each label, (L,)."""
    code = problem.label.codes[problem.fold.rows("train")]
    counted = np.bincount(code[code >= 0], minlength=len(problem.label.names))
    return np.asarray(counted, dtype=np.int64)


def plain_share(of_label: Rows, batch_size: int, rows: int) -> float:
    """The expected share of images with a label that share it with another of their plain batch.

    A plain batch is a random subset, so an image of a label with c of the n rows has none with
    probability C(n − c, B − 1) / C(n − 1, B − 1). `of_label` (L,) are the c; NaN if all are 0.
    """
    own = of_label[of_label > 0].astype(float)
    others = float(min(batch_size, rows) - 1)
    left = rows - own  # rows of other labels, of which all others of the batch must be
    enough = left >= others
    every = np.full_like(own, rows - 1)
    ways = _log_choose(np.where(enough, left, others), others) - _log_choose(every, others)
    alone = np.where(enough, np.exp(ways), 0.0)
    return float(1 - np.average(alone, weights=own)) if len(own) else float("nan")


def _log_choose(many: Doubles, taken: float) -> Doubles:
    """log of the ways to choose, (M,)."""
    from scipy.special import gammaln

    return np.asarray(gammaln(many + 1) - gammaln(taken + 1) - gammaln(many - taken + 1))


def shares(sampler: Sampler, *codes: Rows) -> list[float]:
    """For each of `codes`, the share of images that share their code with another of their batch.

    Counted over the first 20 batches of training. codes: (N,) of every row of the screen, −1 where
    it is missing; such an image is not counted. NaN where no image has a code.
    """
    having, counted = np.zeros(len(codes)), np.zeros(len(codes))
    for step in range(SIMULATED):
        rows = sampler.rows(step)
        for place, code in enumerate(codes):
            own = code[rows]
            sizes = np.bincount(own[own >= 0])
            counted[place] += sizes.sum()
            having[place] += sizes[sizes > 1].sum()
    share = np.full_like(having, np.nan)
    np.divide(having, counted, out=share, where=counted > 0)
    return [float(one) for one in share]


def said(config: RunConfig, problem: Problem, sampler: Sampler) -> str:
    """One line: what share of the images has a positive label and a positive environment."""
    label, environment = shares(sampler, problem.label.codes, problem.environment.codes)
    training = config.training
    line = (
        f"{config.method}: {label:.0%} of the images of a {training.sampler} batch of "
        f"{training.batch_size} have another of their label, {environment:.0%} another of their "
        "environment"
    )
    if training.sampler == "plain":
        return line
    rows = len(problem.fold.rows("train"))
    plain = plain_share(label_rows(problem), training.batch_size, rows)
    return f"{line}; of a plain one {plain:.0%} would have one of their label"
