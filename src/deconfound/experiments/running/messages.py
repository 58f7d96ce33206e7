"""What an experiment and its processes tell each other, and where the files of a run lie."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deconfound.errors import UserError
from deconfound.files import seal


class Order(NamedTuple):
    """A run to do, as it is handed to another process: nothing but text."""

    name: str
    screen: str
    identity: str
    method: str
    config: str
    """JSON."""
    out: str
    """Directory of the experiment."""
    chains: str = "[]"
    """JSON: the chains to embed, correct and measure when the run is trained."""
    tracker: str = ""
    """The tracker that follows the training, as `Tracker` is told it; empty for none."""


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
    """Where an experiment keeps a run."""
    return _home(out) / "runs" / name


def result_file(out: Path, name: str) -> Path:
    """The result of a run; its presence means that the run is trained and scored."""
    return _home(out) / "results" / f"{name}.json"


def stored_result(out: Path, name: str) -> dict[str, Any] | None:
    """What the result file of a run holds; None if there is none that is whole."""
    try:
        found, _ = seal.read_json(result_file(out, name))
    except (UserError, OSError, ValueError):
        return None
    whole = isinstance(found, dict) and {"scores", "validation_loss"} <= found.keys()
    return found if whole else None


def predictions_file(out: Path, name: str) -> Path:
    """The predictions that a result rests on."""
    return _home(out) / "results" / f"{name}.npz"


def read_predictions(out: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """Row, correct, part and seen, (N,) each, of a run; raises UserError if they are damaged."""
    file = predictions_file(out, name)
    try:
        with np.load(file, allow_pickle=False) as found:  # zip verifies its checksums
            return {one: found[one] for one in ("row", "correct", "part", "seen")}
    except Exception as error:  # zip and NumPy raise nearly every type there is
        raise UserError(
            f"{file}: missing or damaged; remove {result_file(out, name)} too, and the same "
            "command scores the run again"
        ) from error


def embeddings_file(out: Path, stem: str) -> Path:
    """The embeddings of a run, or what a chain made of them."""
    return out / "embeddings" / f"{stem}.h5ad"


def chain_scores_file(out: Path, stem: str) -> Path:
    """The scores of a chain's embeddings; in `out/mixing` where release 0.1 wrote them."""
    former = out / "mixing" / f"{stem}.parquet"
    return former if former.is_file() else out / "chains" / f"{stem}.parquet"


def _home(out: Path) -> Path:
    """The folder that holds runs: `out`, or `out/sweep` where release 0.1 wrote them there."""
    former = out / "sweep"
    return former if (former / "sweep.yaml").is_file() else out
