"""What a run records: its metrics, step by step in a CSV file, and the software it ran on."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.runtime.escaping import csv_text, from_spreadsheet, one_line
from deconfound.version import __version__

COLUMNS = ["stage", "step", "part", "name", "value"]


class History:
    """Rows (stage, step, part, name, value), kept in memory and written all at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[str, int, str, str, float]] = []

    def add(self, stage: str, step: int, part: str, values: dict[str, float]) -> None:
        """Add one row for every value; `part` is "train" or "val"."""
        self._rows += [(stage, step, part, name, value) for name, value in values.items()]

    def since(self, rows: int) -> list[tuple[str, int, str, str, float]]:
        """The rows after the first `rows`, in the order in which they were added."""
        return self._rows[rows:]

    def write(self) -> None:
        """Write all rows atomically; float64 values survive exactly."""
        table = pd.DataFrame(self._rows, columns=COLUMNS)
        atomic.write_text(self._path, csv_text(table, shown=False))

    def resume(self, stages: list[str], done: int) -> None:
        """Read back the rows of finished stages, and of the last of `stages` up to step `done`."""
        table = read_history(self._path)
        before = table["stage"].isin(stages[:-1])
        current = (table["stage"] == stages[-1]) & (table["step"] <= done)
        kept = table[before | current]
        self._rows = list(kept.itertuples(index=False, name=None))


def read_history(path: Path) -> pd.DataFrame:
    """The table of a run's metrics.csv; raises UserError for a value that is no number."""
    try:
        return from_spreadsheet(pd.read_csv(path, converters={"value": _number}))
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({one_line(str(error))}); restore a copy, or remove the run and fit "
            "it again"
        ) from error


def _number(text: str) -> float:
    """Exact, which pandas 2 is not unless it is told, and pandas 3 is not to be told."""
    return float(text or "nan")


def software() -> dict[str, Any]:
    """Versions of Python and of the packages that decide numbers, and the commit if known."""
    packages = ("torch", "numpy", "lightning-fabric", "scikit-learn", "faiss-cpu")
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    own = {"deconfound": __version__}
    found["packages"] = own | {package: metadata.version(package) for package in packages}
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    found["commit"] = commit
    found["git_clean"] = None if commit is None else _git(folder, "status", "--porcelain") == ""
    return found


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
