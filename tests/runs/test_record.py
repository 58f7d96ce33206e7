"""What a run records of the software that made it."""

from importlib import metadata

import pytest

from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.writing import provenance_of
from deconfound.runs.record import software
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
