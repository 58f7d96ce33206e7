"""Samplers: a batch of row numbers is a pure function of (seed, step)."""

from typing import Protocol

import numpy as np

from deconfound.arrays import Mask, Rows
from deconfound.runtime.seeds import numpy_stream


class Sampler(Protocol):
    """What training draws its batches from."""

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step` (from 0), int64."""


class PlainSampler:
    """Every row once an epoch, in a new order each epoch; the incomplete last batch is dropped.

    With fewer rows than a batch, a batch is all rows.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, purpose: str = "sampler") -> None:
        self._rows = np.asarray(rows, dtype=np.int64)
        self._size = min(batch_size, len(self._rows))
        self._seed = seed
        self._purpose = purpose
        self._epoch = -1
        self._order = self._rows

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step`."""
        epoch, batch = divmod(step, len(self._rows) // self._size)
        if epoch != self._epoch:
            stream = numpy_stream(self._seed, self._purpose, epoch)
            self._order = stream.permutation(self._rows)
            self._epoch = epoch
        return self._order[batch * self._size : (batch + 1) * self._size]


class EnvironmentBalancedSampler:
    """The same number of rows from every environment in each batch, each in its own epochs.

    Rows without an environment (−1) are never drawn. An environment smaller than its share gives
    all its rows.
    """

    def __init__(self, rows: Rows, environment: Rows, batch_size: int, seed: int) -> None:
        own, start, count, present = _grouped(rows, environment)
        share = max(1, batch_size // len(present))
        self._samplers = [
            PlainSampler(own[s : s + n], share, seed, f"sampler of environment {e}")
            for s, n, e in zip(start, count, present, strict=True)
        ]

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step`, environment after environment."""
        return np.concatenate([sampler.rows(step) for sampler in self._samplers])


class LabelBalancedSampler:
    """Distinct labels drawn by their frequency, then the same number of rows of each.

    Makino et al., appendix A.1.1: classes without replacement from the training frequencies, rows
    without replacement within a class; a class with fewer rows gives all of them, so a batch may
    be smaller than `classes` × (`batch_size` // `classes`). Rows without a label are never drawn.
    """

    def __init__(self, rows: Rows, label: Rows, batch_size: int, classes: int, seed: int) -> None:
        self._rows, self._start, self._count, _ = _grouped(rows, label)
        self._classes = min(classes, len(self._count))
        self._each = max(1, batch_size // self._classes)
        self._seed = seed

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step`, class after class."""
        stream = numpy_stream(self._seed, "label-balanced sampler", step)
        gumbel = np.log(self._count) + stream.gumbel(size=len(self._count))
        chosen = np.argpartition(-gumbel, self._classes - 1)[: self._classes]
        count = self._count[chosen]
        picks = _distinct(count, np.minimum(count, self._each), stream)
        place = (self._start[chosen][:, None] + picks)[picks >= 0]
        return np.asarray(self._rows[place], dtype=np.int64)


class UniformSampler:
    """Rows drawn in two steps: a group uniformly, with replacement, then a row uniformly within it.

    Rows without a group (−1) are never drawn. Small groups are repeated: `effective_size` tells how
    much. Each group drawn gives `draws` rows. They are stored as all first rows, then all second
    rows, and so on, `draws` × `batch_size` in all.
    """

    def __init__(
        self, rows: Rows, group: Rows, batch_size: int, seed: int, purpose: str, draws: int = 1
    ) -> None:
        self._rows, self._start, self._count, _ = _grouped(rows, group)
        self._size, self._draws = batch_size, draws
        self._seed, self.purpose = seed, purpose

    @property
    def effective_size(self) -> float:
        """(Σ w)² / Σ w² of the rows' probabilities w: all rows if the groups are equal."""
        share = 1.0 / (len(self._count) * self._count)
        return float(1.0 / (self._count * share**2).sum())

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step`."""
        stream = numpy_stream(self._seed, "uniform sampler", self.purpose, step)
        group = np.tile(stream.integers(len(self._count), size=self._size), self._draws)
        place = self._start[group] + stream.integers(self._count[group])
        return np.asarray(self._rows[place], dtype=np.int64)


class EpisodeSampler:
    """Distinct environments drawn uniformly, then distinct rows of each, one episode after another.

    After all of them stand `joined` of the `negative` rows of each environment, in the same order.
    An environment with fewer rows than are drawn gives them with replacement. Rows without an
    environment (−1) are never drawn.
    """

    def __init__(
        self,
        rows: Rows,
        environment: Rows,
        episodes: int,
        each: int,
        seed: int,
        negative: Mask | None = None,
        joined: int = 0,
    ) -> None:
        """`environment` and `negative` are those of `rows`; each environment has negative ones."""
        self._of = _members(rows, environment)
        if negative is not None:
            rows, environment = rows[negative], environment[negative]
        self._joining = _members(rows, environment)
        self._episodes, self._each, self._joined = episodes, each, joined
        self._seed = seed

    @property
    def own(self) -> int:
        """Leading rows of a batch that do not merely join."""
        return self._episodes * self._each

    def rows(self, step: int) -> Rows:
        """Row numbers of the batch of `step`."""
        stream = numpy_stream(self._seed, "episode sampler", step)
        drawn = stream.choice([*self._of], self._episodes, replace=False)
        found = [_some(self._of[code], self._each, stream) for code in drawn]
        if self._joined:
            found += [_some(self._joining[code], self._joined, stream) for code in drawn]
        return np.concatenate(found)


def _members(rows: Rows, code: Rows) -> dict[int, Rows]:
    own, start, _, present = _grouped(rows, code)
    return dict(zip(present.tolist(), np.split(own, start[1:]), strict=True))


def _some(rows: Rows, many: int, stream: np.random.Generator) -> Rows:
    return stream.choice(rows, many, replace=len(rows) < many)


class JoinedSampler:
    """The batch of one sampler, followed by that of another."""

    def __init__(self, first: Sampler, second: Sampler) -> None:
        self.both = (first, second)

    def rows(self, step: int) -> Rows:
        """Row numbers of both batches of `step`, in order."""
        return np.concatenate([sampler.rows(step) for sampler in self.both])


def effective_sizes(sampler: Sampler) -> dict[str, float]:
    """`UniformSampler.effective_size` of a sampler or of the two it joins, by purpose; or none."""
    match sampler:
        case UniformSampler():
            return {f"effective_size_{sampler.purpose}": sampler.effective_size}
        case JoinedSampler():
            first, second = sampler.both
            return effective_sizes(first) | effective_sizes(second)
        case _:
            return {}


def _grouped(rows: Rows, code: Rows) -> tuple[Rows, Rows, Rows, Rows]:
    """The rows with a code (not −1) group after group, each as they stand.

    And of each group that occurs where it starts, its size, its code. One sort, which takes time in
    proportion to the rows for up to 65,535 groups.
    """
    small = np.min_scalar_type(max(0, int(code.max(initial=0))) + 1)
    # −1 becomes the largest number, so that rows without a code stand last.
    order = np.argsort(code.astype(small), kind="stable")
    size = np.bincount(code[code >= 0])
    present = np.flatnonzero(size)
    count = size[present].astype(np.int64)
    own = np.asarray(rows, dtype=np.int64)[order[: int(count.sum())]]
    return own, np.cumsum(count) - count, count, present.astype(np.int64)


def _distinct(count: Rows, wanted: Rows, stream: np.random.Generator) -> Rows:
    """For each class, a row of `wanted` distinct integers below `count`, filled up with −1.

    Floyd's algorithm, one pass over the columns for all classes at once.
    """
    picks = np.full((len(count), int(wanted.max())), -1, dtype=np.int64)
    for column in range(picks.shape[1]):
        last = count - wanted + column
        drawn = (stream.random(len(count)) * (last + 1)).astype(np.int64)
        taken = (picks[:, :column] == drawn[:, None]).any(axis=1)
        picks[:, column] = np.where(column < wanted, np.where(taken, last, drawn), -1)
    return picks
