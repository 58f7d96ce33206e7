"""compare: methods × folds × seeds of a plan, a screen or a demonstration, and what they show.

The plan is a file, or follows from the screen and the view. A view is what is read off the long
table of scores: the settings taken of a search, the table of Pernice et al., or the trade-off of
Makino et al.
"""

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from deconfound.data.ingest.suggested import command_for
from deconfound.data.readers.features import Part
from deconfound.data.tables.compressed import table_kind
from deconfound.data.tables.table import KINDS
from deconfound.errors import UserError
from deconfound.experiments import search_table
from deconfound.experiments.execute import Call, Done, execute
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan import Plan
from deconfound.experiments.running.followed import shared_tracker
from deconfound.experiments.words import read_rows
from deconfound.files import atomic
from deconfound.files.atomic import refuse_foreign
from deconfound.files.object_store import is_url
from deconfound.studies import levels, trade_off
from deconfound.studies.comparison import CompareOptions, Comparison, ViewName, by_keyword
from deconfound.studies.demo import demo
from deconfound.studies.rows import ROLES, screen_of_rows
from deconfound.studies.source import screen_of
from deconfound.studies.study import compare_study

if TYPE_CHECKING:
    from deconfound.estimator.rows import Data

DEMO = "demo"
MARKERS = ("sweep.yaml", levels.MARKER, "diagnose.yaml")
"""Plan files of a directory that `compare` may go on with; the first is written for a plan file."""
VIEWS: dict[ViewName, Callable[[Plan, Done, Path], tuple[pd.DataFrame, list[str]]]] = {
    "search": search_table.write_view,
    "levels": levels.write_view,
    "trade-off": trade_off.write_view,
}
COMMON = {
    "view", "max_runs", "tracker", "hold_out", "seeds", "batch_size", "methods", "standardise_by",
    "standardise_with", "standardise",
}  # fmt: skip
BY_GROUP = COMMON | {"folds_per_level", "draw_seed", "label", "environment", "steps", "knn"}
USED = {
    "a plan file": {"view", "max_runs", "tracker", "embeddings"},
    "the view verdict": BY_GROUP | {"images_root", "levels", "budget", "augment"},
    "the view levels": BY_GROUP,
    "the view trade-off": COMMON | {"learning_rates", "lengths", "alphas"},
    "demo": {"tracker", "cells", "steps", "seed"},
}
"""Options that each kind of comparison reads."""
INTERVENES = ("the view verdict", "the view levels")
"""Kinds that read options of an intervention too."""


def compare(
    source: "Data",
    out: Path | str | None = None,
    options: CompareOptions | None = None,
    *,
    table: pd.DataFrame | None = None,
    layer: str | None = None,
    obsm: str | None = None,
    quiet: bool = False,
    started: float | None = None,
    **keywords: Any,
) -> Comparison:
    """Do what is missing of a comparison in the directory `out`, and read a view off its scores.

    `source` is a screen, a table of images or profiles, or rows in memory as `Deconfounder.fit`
    takes them, of which the screen `out/screen` is made, a plan FILE.yaml, or "demo", which
    simulates its own. `table` has a row for each image of an array; `layer` and `obsm` choose a
    part of AnnData. Without `out` everything lies in a temporary folder, which is removed with what
    is returned. `keywords` are the options of `deconfound compare` by their names, as
    hold_out="Metadata_Plate" or budget=5, and change those of `options`; label, environment and
    levels of rows in memory may be arrays.

    A killed call resumes. A run that fails does not stop the others and is listed in failures.csv.
    The summary counts from `started`, in seconds since the epoch. Raises UserError for an option
    that this kind of comparison does not read, for every mistake in a plan, if `out` holds
    something else, and if every run failed; Stopped on SIGTERM and Ctrl-C, when runs are saved.
    """
    began = time.time() if started is None else started
    in_memory = not isinstance(source, (str, os.PathLike))
    told = {name: keywords.pop(name) for name in ROLES if in_memory and name in keywords}
    asked = by_keyword(options or CompareOptions(), keywords)
    call = Call(asked.executors, quiet, asked.options.embeddings, began=began)
    part = Part(layer, obsm)
    if not in_memory and (table is not None or part != Part()):
        raise UserError(f"compare: table, layer and obsm belong to rows in memory; {source} is not")
    folder = Path(tempfile.mkdtemp(prefix="deconfound-")) if out is None else None
    place = folder / "study" if folder is not None else Path(str(out))
    try:
        own = asked.options
        if own.tracker is not None:
            call = replace(call, tracker=shared_tracker(own.tracker, place))
        if in_memory:
            _refuse_before_a_screen(own, asked.intervention)
            path, own = screen_of_rows(source, place, own, told, table, part, quiet)
        else:
            path = Path(str(source))
        found = replace(_compared(path, place, own, asked.intervention, call), out=place)
    except BaseException:
        if folder is not None:
            atomic.discard(folder)
        raise
    if folder is not None:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def _compared(
    path: Path, out: Path, options: CompareOptions, intervention: Mapping[str, Any], call: Call
) -> Comparison:
    if options.view is None and (out / levels.MARKER).is_file():
        options = options.model_copy(update={"view": "levels"})  # that is what it was begun as
    kind = _kind(path, options)
    _refuse_unused(options, intervention, kind)
    if kind == DEMO:
        return demo(out, options, call)
    if kind == "the view verdict":
        if options.methods:
            read_rows(options.methods, options.knn)  # a mistake there is told before any ingest
        screen = screen_of(path, out, options, call.quiet)
        return compare_study(screen, out, options, intervention, call)
    if kind == "the view levels":
        return levels.compare_levels(path, out, options, intervention, call)
    if kind == "the view trade-off":
        return trade_off.compare_trade_off(path, out, options, call)
    if options.view == "verdict":
        raise UserError(f"compare: --view verdict reads a screen; {path} is a plan, leave it out")
    plan = make_plan(path, max_runs=options.max_runs)
    if not any((out / marker).is_file() for marker in MARKERS):
        refuse_foreign(out, MARKERS[0], "comparison")
    with atomic.locked(out):
        atomic.write_text(out / MARKERS[0], path.read_text(encoding="utf-8"))
        (shown, said), summary = execute(plan, out, VIEWS[options.view or "search"], call)
    return Comparison(shown, said, summary)


def _kind(source: Path, options: CompareOptions) -> str:
    """A key of `USED`; raises UserError for any other source."""
    if source.suffix in (".yaml", ".yml"):
        return "a plan file"
    if str(source) == DEMO and not (source / "screen.json").is_file():
        return DEMO  # also beside the directory that an earlier `compare demo --out demo` made
    if source.is_dir() or is_url(source):
        return f"the view {options.view or 'verdict'}"
    if source.is_file() and (table_kind(source) in KINDS or source.suffix == ".h5ad"):
        view = options.view or "verdict"
        if view == "verdict":
            return f"the view {view}"
        raise UserError(
            f"{source}: a table, and --view {view} reads a screen; make one, and compare that: "
            f"{command_for(source)}"
        )
    raise UserError(
        f"{source}: expected a screen, a table of images or profiles (CSV, TSV, Parquet, .h5ad), a "
        "plan FILE.yaml, or demo"
    )


def _refuse_before_a_screen(options: CompareOptions, intervention: Mapping[str, Any]) -> None:
    """Raise UserError for options that are wrong whatever screen rows in memory make."""
    table = options.model_copy(update={"images_root": None})  # which the screen is made by
    _refuse_unused(table, intervention, f"the view {options.view or 'verdict'}")
    if options.methods:
        read_rows(options.methods, options.knn)


def _refuse_unused(options: CompareOptions, intervention: Mapping[str, Any], kind: str) -> None:
    if kind == "the view search":
        raise UserError("compare: --view search reads a plan FILE.yaml; name one for the screen")
    given = [name for name, value in options if value != type(options).model_fields[name].default]
    changed = {name for name, value in intervention.items() if value is not None}
    unread = [name for name in given if name not in USED[kind]]
    unread += [name for name in sorted(changed) if kind not in INTERVENES]
    if not unread:
        return
    flag = "--" + unread[0].replace("_", "-")
    read = [name for name, names in USED.items() if unread[0] in names] or list(INTERVENES)
    raise UserError(f"compare: {flag} is not read with {kind}; it belongs to {' and '.join(read)}")
