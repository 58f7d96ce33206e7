"""compare: methods × folds × seeds of a plan, a screen or a demonstration, and what they show.

The plan is a file, or follows from the screen and the view. A view is what is read off the long
table of scores: the settings taken of a search, the table of Pernice et al., or the trade-off of
Makino et al.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import pandas as pd
from pydantic import Field

from deconfound.config import InterventionOptions, Options, optional, validated
from deconfound.errors import UserError
from deconfound.experiments.execute import Done, embed_taken, execute
from deconfound.experiments.held_out import ALL_GROUPS, describe_folds
from deconfound.experiments.overhead import Summary
from deconfound.experiments.plan import Plan, make_plan
from deconfound.experiments.running.executors import ExecutorArguments, executor_options
from deconfound.files import atomic
from deconfound.studies import crossval, demo, diagnose, ist_table, search

ViewName = Literal["search", "levels", "trade-off"]
DEMO = "demo"
MARKERS = ("sweep.yaml", "crossval.yaml", "diagnose.yaml")
"""Plan files of a directory that `compare` may go on with; the first is written for a plan file."""

Changes = optional(InterventionOptions, leave_out=("intervene",))
"""Options of interventions, each None unless given."""
VIEWS: dict[ViewName, Callable[[Plan, Done, Path], tuple[pd.DataFrame, list[str]]]] = {
    "search": search.write_view,
    "levels": ist_table.write_view,
    "trade-off": diagnose.write_view,
}


class CompareOptions(Options):
    """What is compared, and how it is shown."""

    view: ViewName | None = None
    """search: the settings taken. levels: the table of Pernice et al., the default for a screen.
    trade-off: whether invariance is likely to help. A plan file's own default is search."""
    methods: tuple[str, ...] = ()
    """Methods of a comparison on a screen: METHOD[+IMPUTER][+CORRECTION][+knn][=CONFIG.yaml], such
    as erm+ist and erm+symphony+knn; erm and scbd if not given."""
    hold_out: tuple[str, ...] = ()
    """Levels to hold out in turn, also joined by commas, or folds of a trade-off; all of the
    screen's levels if not given."""
    folds_per_level: int | None = Field(None, ge=1)
    """Groups held out at each level, drawn at random; all if not given."""
    draw_seed: int = 0
    """Seed of that draw."""
    seeds: tuple[int, ...] = ()
    """Seeds of every run; 0 1 2 if not given, and 0 1 for a trade-off."""
    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    steps: int | None = Field(None, ge=1)
    """Training steps of every method, also of one with a configuration; its own if not given."""
    batch_size: int | None = Field(None, ge=1)
    """Images in a batch, for every method; its own if not given."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a method ends in +knn."""
    embeddings: bool = False
    """Of a plan file: embed the runs of the settings taken as well."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Of a trade-off: learning rates of ERM."""
    lengths: tuple[int, ...] = (50, 150, 450)
    """Of a trade-off: training steps of ERM; SCBD trains for the largest."""
    alphas: tuple[float, ...] = (0.0, 1.0, 4.0, 8.0)
    """Of a trade-off: weights of the invariance loss of SCBD; give none to leave the curve out."""
    cells: int = Field(6_000, ge=500)
    """Of the demonstration: simulated cells."""
    seed: int = 0
    """Of the demonstration: seed of the screen and of the runs."""


COMMON = {"view", "hold_out", "seeds", "batch_size", "methods"}
USED = {
    "a plan file": {"view", "embeddings"},
    "the view levels": COMMON
    | {"folds_per_level", "draw_seed", "label", "environment", "steps", "knn"},
    "the view trade-off": COMMON | {"learning_rates", "lengths", "alphas"},
    "demo": {"cells", "steps", "seed"},
}
"""Options that each kind of comparison reads."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    shown: pd.DataFrame
    """The view as a table of text."""
    sentences: list[str] = field(default_factory=list)
    """What the scores say, and what could not be held out."""
    summary: Summary | None = None
    """What this call did; None of a demonstration."""
    page: Path | None = None
    """The report of a demonstration."""


def compare(
    source: Path | str,
    out: Path,
    options: CompareOptions | None = None,
    *,
    intervention: Mapping[str, Any] | None = None,
    quiet: bool = False,
    started: float | None = None,
    **executors: Unpack[ExecutorArguments],
) -> Comparison:
    """Do what is missing of a comparison in the directory `out`, and read a view off its scores.

    `source` is a plan FILE.yaml, a screen, or "demo", which simulates its own. `intervention` holds
    values of `InterventionOptions` for methods trained on imputed images. A killed call resumes. A
    run that fails does not stop the others and is listed in failures.csv. Raises UserError for an
    option that this kind of comparison does not read, for every mistake in a plan, if `out` holds
    something else, and if every run failed; Stopped on SIGTERM and Ctrl-C, when runs are saved.
    """
    options = options or CompareOptions()
    common: dict[str, Any] = {"quiet": quiet, "started": started, **executors}
    path, kind = Path(source), _kind(Path(source), options)
    _refuse_unused(options, intervention, kind)
    given = options.model_dump(exclude_defaults=True)
    if kind == "demo":
        del common["started"]
        page = demo.demo(out, validated(demo.DemoOptions, given, "compare"), **common)
        return Comparison(pd.DataFrame(), page=page)
    if kind == "a plan file":
        return _of_file(path, Path(out), options, **common)
    given = {name: value for name, value in given.items() if name not in ("view", "methods")}
    if kind == "the view levels":
        given["levels"] = given.pop("hold_out", ())
        asked = validated(crossval.CrossvalOptions, given, "compare")
        methods = options.methods or ("erm", "scbd")
        found = crossval.crossval(methods, path, out, asked, intervention=intervention, **common)
        said = [*(one.text() for one in found.differences), *describe_folds(found.folds)]
        return Comparison(found.shown, said, found.summary)
    given["folds"] = _folds(given.pop("hold_out", ()))
    given |= _recipes(options.methods)
    about = diagnose.diagnose(
        path, out, validated(diagnose.DiagnoseOptions, given, "compare"), **common
    )
    return Comparison(pd.DataFrame(), diagnose.sentences(about.folds), about.summary)


def _of_file(
    file: Path,
    out: Path,
    options: CompareOptions,
    *,
    quiet: bool,
    started: float | None,
    **executors: Unpack[ExecutorArguments],
) -> Comparison:
    began = time.time() if started is None else started
    where = executor_options(executors)
    plan = make_plan(file)
    held = out.exists() and any(out.iterdir())
    if held and not any((out / marker).is_file() for marker in MARKERS):
        raise UserError(f"{out}: exists and is not a comparison; choose another --out")
    told: list[tuple[pd.DataFrame, list[str]]] = []
    with atomic.locked(out):
        atomic.write_text(out / MARKERS[0], file.read_text(encoding="utf-8"))
        write = VIEWS[options.view or "search"]
        done, summary = execute(
            plan, out, where, lambda done: told.append(write(plan, done, out)), quiet=quiet,
            began=began,
        )  # fmt: skip
        if options.embeddings:
            embed_taken(done, out)
    return Comparison(*told[0], summary)


def _kind(source: Path, options: CompareOptions) -> str:
    """A key of `USED`; raises UserError for a source that is none of the three."""
    if source.suffix in (".yaml", ".yml"):
        return "a plan file"
    if source.is_dir():
        return f"the view {options.view or 'levels'}"
    if str(source) == DEMO:
        return DEMO
    raise UserError(
        f"{source}: expected a plan FILE.yaml, the directory of a screen, or demo; a table becomes "
        "a screen by `deconfound ingest`"
    )


def _refuse_unused(
    options: CompareOptions, intervention: Mapping[str, Any] | None, kind: str
) -> None:
    if kind == "the view search":
        raise UserError("compare: --view search reads a plan FILE.yaml; name one for the screen")
    given = [name for name, value in options if value != type(options).model_fields[name].default]
    changed = {name for name, value in (intervention or {}).items() if value is not None}
    unread = [name for name in given if name not in USED[kind]]
    unread += [name for name in sorted(changed) if kind != "the view levels"]
    if not unread:
        return
    flag = "--" + unread[0].replace("_", "-")
    read = [name for name, names in USED.items() if unread[0] in names] or ["the view levels"]
    raise UserError(f"compare: {flag} is not read with {kind}; it belongs to {' and '.join(read)}")


def _folds(words: tuple[str, ...]) -> tuple[str, ...]:
    """Folds of a trade-off; a level alone is all of its groups."""
    plain = ("iid", "given")
    return tuple(
        word if "=" in word or word in plain or word.startswith(ALL_GROUPS) else ALL_GROUPS + word
        for word in words
    )


def _recipes(methods: tuple[str, ...]) -> dict[str, Path]:
    """The configurations that erm=FILE and scbd=FILE name for a trade-off."""
    found = {}
    for word in methods:
        name, _, file = word.partition("=")
        if name not in (diagnose.ERM, diagnose.SCBD) or not file:
            raise UserError(
                f"compare: --methods {word}: a trade-off trains erm and scbd; expected "
                "erm=CONFIG.yaml or scbd=CONFIG.yaml"
            )
        found[name] = Path(file)
    return found


def sweep(
    file: Path,
    out: Path,
    *,
    embeddings: bool = False,
    quiet: bool = False,
    started: float | None = None,
    **executors: Unpack[ExecutorArguments],
) -> Summary:
    """The name that `compare` had in release 0.1 for a plan file and its search."""
    found = _of_file(
        Path(file), Path(out), CompareOptions(embeddings=embeddings), quiet=quiet, started=started,
        **executors,
    )  # fmt: skip
    assert found.summary is not None
    return found.summary
