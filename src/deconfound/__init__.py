"""deconfound: image embeddings that follow the perturbation and ignore the plate.

    from deconfound import Screen, describe, embed, fit, imputation, impute, measure
    from deconfound import open_screen, report, sweep, transfer

The names are imported when they are first used, so that the command line starts fast.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

# Threads of libgomp that spin long while they wait take the core from whoever needs it; threads
# that never spin lose speed to sleeping. A short spin does well alone and beside a busy process:
# benchmarks/contention.py. Read when libgomp is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"

_HOMES = {
    "Screen": "deconfound.data.screen",
    "open_screen": "deconfound.data.screen",
    "ingest": "deconfound.data.ingest",
    "ingest_array": "deconfound.data.arrays",
    "ingest_profiles": "deconfound.data.profiles",
    "simulate": "deconfound.data.simulate",
    "inject": "deconfound.data.inject",
    "describe": "deconfound.describe",
    "fit": "deconfound.fit",
    "embed": "deconfound.embed",
    "embed_shards": "deconfound.embed_shards",
    "correct": "deconfound.correct",
    "crossval": "deconfound.crossval",
    "measure": "deconfound.measure",
    "cellprofiler": "deconfound.cellprofiler",
    "profiles": "deconfound.profiles",
    "aggregate": "deconfound.aggregate",
    "relations": "deconfound.relations",
    "retrieval": "deconfound.retrieval",
    "imputation": "deconfound.imputation",
    "sweep": "deconfound.sweep",
    "transfer": "deconfound.transfer",
    "impute": "deconfound.transfer_imputed",
    "export": "deconfound.export",
    "report": "deconfound.report",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from deconfound.aggregate import aggregate as aggregate
    from deconfound.cellprofiler import cellprofiler as cellprofiler
    from deconfound.correct import correct as correct
    from deconfound.crossval import crossval as crossval
    from deconfound.data.arrays import ingest_array as ingest_array
    from deconfound.data.ingest import ingest as ingest
    from deconfound.data.inject import inject as inject
    from deconfound.data.profiles import ingest_profiles as ingest_profiles
    from deconfound.data.screen import Screen as Screen
    from deconfound.data.screen import open_screen as open_screen
    from deconfound.data.simulate import simulate as simulate
    from deconfound.describe import describe as describe
    from deconfound.embed import embed as embed
    from deconfound.embed_shards import embed_shards as embed_shards
    from deconfound.export import export as export
    from deconfound.fit import fit as fit
    from deconfound.imputation import imputation as imputation
    from deconfound.measure import measure as measure
    from deconfound.profiles import profiles as profiles
    from deconfound.relations import relations as relations
    from deconfound.report import report as report
    from deconfound.retrieval import retrieval as retrieval
    from deconfound.sweep import sweep as sweep
    from deconfound.transfer import transfer as transfer
    from deconfound.transfer_imputed import impute as impute


class _Package(ModuleType):
    """The package; a verb's module and its function share a name, and the function is meant."""

    def __getattr__(self, name: str) -> object:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == value.__name__:
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
