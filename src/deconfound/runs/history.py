"""The metrics of a run, step by step, in a CSV file."""

from pathlib import Path

import pandas as pd

from deconfound.files import atomic

COLUMNS = ["stage", "step", "part", "name", "value"]


class History:
    """Rows (stage, step, part, name, value), kept in memory and written all at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[str, int, str, str, float]] = []

    def add(self, stage: str, step: int, part: str, values: dict[str, float]) -> None:
        """Add one row for every value; `part` is "train" or "val"."""
        self._rows += [(stage, step, part, name, value) for name, value in values.items()]

    def write(self) -> None:
        """Write all rows atomically; float64 values survive exactly."""
        with atomic.atomic_file(self._path) as temporary:
            pd.DataFrame(self._rows, columns=COLUMNS).to_csv(temporary, index=False)

    def resume(self, stages: list[str], done: int) -> None:
        """Read back the rows of finished stages, and of the last of `stages` up to step `done`."""
        table = read_history(self._path)
        before = table["stage"].isin(stages[:-1])
        current = (table["stage"] == stages[-1]) & (table["step"] <= done)
        kept = table[before | current]
        self._rows = list(kept.itertuples(index=False, name=None))


def read_history(path: Path) -> pd.DataFrame:
    """The table of a run's metrics.csv."""
    return pd.read_csv(path, float_precision="round_trip")
