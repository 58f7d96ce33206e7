"""What a run records of its training, and of the software that made it."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.writing import provenance_of
from deconfound.errors import UserError
from deconfound.runs.record import History, read_history, software
from deconfound.version import __version__


def test_the_sources_need_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an unpacked source distribution on PYTHONPATH: it is its own version, none else's."""
    whole = metadata.version

    def missing(name: str) -> str:
        if name == "deconfound":
            raise metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr("deconfound.data.ingest.writing.version", missing)
    assert software()["packages"]["deconfound"] == __version__
    made = provenance_of(None, None, IngestConfig(), None)
    assert made["versions"]["deconfound"] == __version__


def test_a_history_is_read_exactly(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    drawn = np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    values = [*drawn.tolist(), float("nan"), float("inf"), 5e-324, 0.1 + 0.2]
    history = History(file)
    for step, value in enumerate(values):
        history.add("stage", step, "train", {"loss": value})
    history.write()
    found = read_history(file)["value"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values)
    file.write_text(file.read_text().replace("inf", "in"))
    with pytest.raises(UserError, match=r"metrics\.csv: damaged \(could not convert .*'in'"):
        read_history(file)
