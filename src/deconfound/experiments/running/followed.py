"""Trackers that follow the runs of an experiment, all of them in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deconfound.runs.config import RunConfig
from deconfound.runtime.streams import complain
from deconfound.training.tracking import loggers
from deconfound.training.tracking.tracker import Tracker, split_word


def shared_tracker(word: str, out: Path) -> str:
    """The tracker `word` with the place that the processes of all runs of `out` share.

    It is a folder of `out` for TensorBoard and MLflow if `word` names none. Raises UserError for an
    unknown tracker, and if its package is missing.
    """
    kind, place = split_word(word)
    if kind == "wandb":
        place = place or loggers.PROJECT
    elif place is None or "://" not in place:
        place = str((out / kind if place is None else Path(place)).resolve())
    loggers.refuse_missing(kind, place)
    return f"{kind}:{place}"


def prepare_tracker(word: str) -> None:
    """Make the place of a shared tracker; raises UserError if it cannot be opened."""
    kind, place = split_word(word)
    if place is not None:
        loggers.prepare(kind, place)


@contextmanager
def followed(word: str, config: RunConfig, name: str) -> Iterator[Tracker | None]:
    """The tracker of the run called `name`; None without a word."""
    if not word:
        yield None
        return
    title = title_of(config, name)
    with Tracker(word, complain, title=title, required=False) as tracker:
        yield tracker


def title_of(config: RunConfig, name: str) -> str:
    """What a tracker calls the run `name`: entry, fold and seed, and the hash that tells it."""
    without = f" without {config.data.without}" if config.data.without else ""
    told = f"{config.title} {config.data.fold}{without} seed {config.seed}"
    return f"{told} {name.rpartition('-')[2]}".replace("/", "_")
