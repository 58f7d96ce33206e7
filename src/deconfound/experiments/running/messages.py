"""What a sweep and its processes tell each other, and where a run's files lie."""

from pathlib import Path
from typing import NamedTuple


class Order(NamedTuple):
    """A run to do, as it is handed to another process: nothing but text."""

    name: str
    screen: str
    identity: str
    method: str
    config: str
    """JSON."""
    out: str
    """Directory of the sweep."""


class Outcome(NamedTuple):
    """What became of a run."""

    name: str
    worker: int
    """Number of the process that did it."""
    started: float
    ended: float
    """Seconds since the epoch."""
    training: float = 0.0
    evaluation: float = 0.0
    """Seconds of these in this process; what remains is preparation and writing."""
    reason: str = ""
    """One line that says why the run failed; empty if it did not."""


def run_directory(out: Path, name: str) -> Path:
    """Where a sweep keeps a run."""
    return out / "runs" / name


def result_file(out: Path, name: str) -> Path:
    """The result of a run; its presence means that the run is trained and scored."""
    return out / "results" / f"{name}.json"


def predictions_file(out: Path, name: str) -> Path:
    """The predictions that a result rests on."""
    return out / "results" / f"{name}.npz"
