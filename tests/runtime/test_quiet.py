"""Lines of libraries are kept from the user, and shown with --debug; our own always are."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning
from deconfound.runtime import quiet

Said = pytest.CaptureFixture[str]


def noise(_: list[str]) -> None:
    """What a library does: it logs with a handler of its own, warns, and fails in a finaliser."""
    logger = logging.getLogger("library")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    logger.info("Using bfloat16 Automatic Mixed Precision")
    logger.error("an error of the library")
    warnings.warn("use the new name", FutureWarning, stacklevel=2)
    warnings.warn("the file has two names", InputWarning, stacklevel=2)

    class Left:
        def __del__(self) -> None:
            raise RuntimeError("cannot decrement")

    Left()


def test_with_and_without_debug(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr("deconfound.cli.screens.call_describe", noise)
    monkeypatch.setattr(warnings, "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    before = logging.root.manager.disable
    cli.main(["describe", "s"])
    assert capsys.readouterr().err == (
        "an error of the library\ndeconfound: warning: the file has two names\n"
    )
    assert logging.root.manager.disable == before
    with pytest.warns(FutureWarning, match="use the new name"):
        cli.main(["describe", "s", "--debug"])
    shown = capsys.readouterr().err
    assert "Using bfloat16 Automatic Mixed Precision" in shown
    assert "RuntimeError: cannot decrement" in shown
    assert "deconfound: warning: the file has two names\n" in shown
    assert quiet.DEBUG not in os.environ


def test_a_run_in_bfloat16_says_what_is_ours(
    screen: Screen, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = "--steps 1 --batch-size 24 --device cpu --precision bf16 --threads 1 --quiet"
    few += " --fold plate=S1/P1 --val-fraction 0.2"
    out = tmp_path / "run"
    cli.main(["fit", "erm", str(screen.path), *few.split(), "--out", str(out)])
    said = capfd.readouterr()
    assert (said.out, said.err) == (f"run in {out}\n", "")
