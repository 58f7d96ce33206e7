"""deconfound: image embeddings that follow the perturbation and ignore the plate.

    from deconfound import Deconfounder, Screen, compare, describe, embed, fit, impute, measure
    from deconfound import open_screen, report, transfer

The names are imported when they are first used, so that the command line starts fast.
"""

import importlib
import os
from typing import TYPE_CHECKING

from deconfound.verbs import PUBLIC
from deconfound.version import __version__ as __version__

# Threads of libgomp that spin long while they wait take the core from whoever needs it; threads
# that never spin lose speed to sleeping. A short spin does well alone and beside a busy process:
# benchmarks/contention.py. Read when libgomp is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = list(PUBLIC)

if TYPE_CHECKING:
    from deconfound.counterfactuals.impute import impute as impute
    from deconfound.counterfactuals.judge import imputation as imputation
    from deconfound.counterfactuals.swap import transfer as transfer
    from deconfound.data.ingest.arrays import ingest_array as ingest_array
    from deconfound.data.ingest.cellprofiler import cellprofiler as cellprofiler
    from deconfound.data.ingest.images import ingest as ingest
    from deconfound.data.ingest.profiles import ingest_profiles as ingest_profiles
    from deconfound.data.screens.export import export as export
    from deconfound.data.screens.screen import Screen as Screen
    from deconfound.data.screens.screen import open_screen as open_screen
    from deconfound.data.simulation.inject import inject as inject
    from deconfound.data.simulation.simulate import simulate as simulate
    from deconfound.description.describe import describe as describe
    from deconfound.embeddings.aggregate import aggregate as aggregate
    from deconfound.embeddings.content_encoder import ContentEncoder as ContentEncoder
    from deconfound.embeddings.correct import correct as correct
    from deconfound.embeddings.embed import embed as embed
    from deconfound.embeddings.embed import embed_shards as embed_shards
    from deconfound.embeddings.embed import profiles as profiles
    from deconfound.embeddings.features import features as features
    from deconfound.estimator.deconfounder import Deconfounder as Deconfounder
    from deconfound.evaluation.measure import measure as measure
    from deconfound.evaluation.relations import relations as relations
    from deconfound.evaluation.retrieval import retrieval as retrieval
    from deconfound.reports.model_directory import export_model as export_model
    from deconfound.reports.report import report as report
    from deconfound.studies.compare import compare as compare
    from deconfound.training.fit import fit as fit
    from deconfound.verification import check as check


def __getattr__(name: str) -> object:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    hint = "; compare does its work" if name in ("sweep", "crossval") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
