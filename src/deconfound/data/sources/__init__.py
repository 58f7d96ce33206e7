"""Public data sets made into screens; one module per data set, found by its file's name.

A source declares `SUMMARY` (one line), `PAPER` (authors, title, year), `Config` (its typed
options) and `make(root, out, config)`, which reads the data set's own files below `root`, writes a
screen at `out` and returns it opened. Nothing is downloaded.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from deconfound.config import Options
from deconfound.data.screens.screen import Screen


class Source(Protocol):
    """What a module of this folder declares."""

    SUMMARY: str
    PAPER: str
    Config: type[Options]

    def make(self, root: Path, out: Path, config: Any) -> Screen:
        """Write the screen at `out` from the files below `root`; `config` is a `Config`."""


def discover() -> dict[str, Source]:
    """Every source by name, sorted; raises AttributeError for a module that is no source."""
    found: dict[str, Source] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        for part in ("SUMMARY", "PAPER", "Config", "make"):
            if not hasattr(module, part):
                raise AttributeError(f"{module.__name__} declares no {part}")
        found[name] = cast(Source, module)
    return found
