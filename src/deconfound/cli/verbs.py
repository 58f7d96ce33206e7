"""The command line: find the verb, call it, and end as what happened asks."""

import os
import sys
import traceback
from collections.abc import Callable

from deconfound.cli import runs as runs
from deconfound.cli import screens as screens
from deconfound.cli import tables as tables
from deconfound.cli.printing import complain
from deconfound.config import did_you_mean
from deconfound.errors import UserError
from deconfound.runtime import stop
from deconfound.runtime.escaping import for_terminal
from deconfound.version import __version__

VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (tables.call_demo, "the main job on a simulated screen, to an HTML report, in minutes"),
    "simulate": (screens.call_simulate, "make a screen of cells with planted truth"),
    "ingest": (screens.call_ingest, "make a screen of your table and images"),
    "source": (screens.call_source, "make a screen of a public data set"),
    "inject": (
        screens.call_inject,
        "put planted technical effects into the cells of a clean screen",
    ),
    "describe": (
        screens.call_describe,
        "what a screen holds, what can be held out, what is confounded",
    ),
    "fit": (runs.call_fit, "train one method on one fold with one seed"),
    "embed": (runs.call_embed, "embed every image of a screen"),
    "cellprofiler": (runs.call_cellprofiler, "measure CellProfiler's features of every image"),
    "profiles": (runs.call_profiles, "the profiles of a screen as they are, as embeddings"),
    "correct": (runs.call_correct, "take the environment out of embeddings after training"),
    "measure": (runs.call_measure, "score embeddings"),
    "aggregate": (runs.call_aggregate, "from cells to guides to genes"),
    "relations": (runs.call_relations, "score embeddings of genes against known complexes"),
    "retrieval": (runs.call_retrieval, "score whether replicates find each other first"),
    "sweep": (tables.call_sweep, "methods × settings × folds × seeds, to one table"),
    "crossval": (
        tables.call_crossval,
        "methods × levels of what is held out, to the table of Pernice et al.",
    ),
    "diagnose": (
        tables.call_diagnose,
        "will invariance help here? an answer before you train for it",
    ),
    "imputation": (
        runs.call_imputation,
        "score images imputed into other environments, where the truth is known",
    ),
    "transfer": (
        runs.call_transfer,
        "counterfactual images: swap content and style, or impute into an environment",
    ),
    "export": (
        screens.call_export,
        "a screen as OME-TIFF files and a table, or profiles as Parquet",
    ),
    "report": (tables.call_report, "one HTML page of runs, embeddings and scores"),
    "check": (screens.call_check, "verify that every file of a screen or a run is whole"),
    "methods": (tables.list_methods, "list the methods"),
    "metrics": (tables.list_metrics, "list the metrics"),
    "sources": (tables.list_sources, "list the public data sets"),
}


RESUMED = ("fit", "embed", "cellprofiler", "demo", "sweep", "crossval", "diagnose")
"""Verbs that go on where they were stopped."""
SAVED = ("fit", "sweep", "crossval", "diagnose")
"""Of these, the verbs that save what is under way when they are stopped."""


def main(words: list[str] | None = None) -> None:
    """Run a verb.

    Exits with 2 and one line on a mistake of the user's; with one line too on SIGTERM, with 0 where
    fit or sweep has saved its runs and else with 143, and on Ctrl-C, with 130. Ends quietly with
    141 where the reader of its output has gone.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with stop.at_once():
            _dispatch(words)
            sys.stdout.flush()
    except UserError as error:
        if debug:
            lines = traceback.format_exc().splitlines()
            print(*map(for_terminal, lines), sep="\n", file=sys.stderr)
        complain(str(error))
        sys.exit(2)
    except BrokenPipeError:  # its reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None or debug:
            raise
        reason = f"{os.fsdecode(error.filename)}: {error.strerror}"
        complain(f"{reason}; check the path and its permissions")
        sys.exit(2)
    except KeyboardInterrupt as request:
        remedy = "resumes" if words[0] in RESUMED else "starts again, as nothing was written"
        said = str(request) or f"stopped; the same command {remedy}"
        complain(said)
        asked = isinstance(request, stop.Stopped)
        sys.exit(130 if not asked else 0 if words[0] in SAVED else 143)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("deconfound VERB …   image embeddings that follow the perturbation, not the plate\n")
        for name, (_, summary) in VERBS.items():
            print(f"  {name:<{width}}  {summary}")
        print("\ndeconfound VERB --help says more; --debug shows the traceback of an error")
    elif words[0] == "--version":
        print(f"deconfound {__version__}")
    elif words[0] not in VERBS:
        raise UserError(f"unknown verb {words[0]!r}; {did_you_mean(words[0], list(VERBS))}")
    else:
        VERBS[words[0]][0](words[1:])
