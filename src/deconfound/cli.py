"""The command line: parse, call a verb, print."""

import contextlib
import difflib
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import Positional

from deconfound import __version__, stop
from deconfound.config import DataOptions, Options, TrainingOptions, nearest
from deconfound.errors import UserError
from deconfound.escaping import for_terminal

Parsed = TypeVar("Parsed", bound=BaseModel)


class Arguments(BaseModel):
    """Base of the arguments of every verb."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class NewScreenArguments(Arguments):
    """Base of the verbs that make a screen."""

    out: Path
    """Screen to write; must not exist."""


class IngestArguments(NewScreenArguments):
    """Make a screen of image files, of folders ENVIRONMENT/LABEL/, of profiles or of an array."""

    table: Positional[Path | None] = None
    """CSV, TSV or Parquet with one row per image; leave it out for class folders."""
    images_root: Path | None = None
    """Folder that the paths in the table start from, or that holds the class folders."""
    profiles: bool = False
    """The table (or an AnnData .h5ad) holds features, such as CellProfiler's, and no images."""
    feature_columns: tuple[str, ...] = ()
    """Feature columns of --profiles, * for anything; if not given, those that begin with Cells_,
    Cytoplasm_ or Nuclei_, without coordinates, parents and identifiers."""
    array: Path | None = None
    """A .npy or .npz with one image or profile for each row of the table."""
    array_key: str | None = None
    """Which array of a .npz."""
    array_axes: Literal["NCHW", "NHWC"] | None = None
    """Order of the array's axes; if not given, the two equal ones are height and width."""
    quiet: bool = False
    """No progress bar."""


class DescribeArguments(Arguments):
    """Say what a screen holds, what can be held out of it, and what is confounded in it."""

    screen: Positional[Path]
    """Screen to describe."""
    out: Path | None = None
    """Directory of tables, a picture and a page to write as well."""
    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    levels: tuple[str, ...] = ()
    """Nested levels, outermost first; the screen's own if not given."""
    images: int = 20_000
    """Images at most that statistics of pixels come from, evenly over the environments."""
    quiet: bool = False
    """No progress bar."""


class FitArguments(Arguments):
    """Base of the arguments of fit; each method adds its own."""

    screen: Positional[Path]
    """Screen to train on."""
    out: Path
    """Directory of the run; if it holds this very run, the run is resumed."""
    quiet: bool = False
    """No progress bar."""


class EmbedArguments(Arguments):
    """Embed every image of a screen with a run."""

    run: Positional[Path]
    """Directory of a finished run."""
    screen: Positional[Path]
    """Screen to embed; any with the same channels."""
    out: Path
    """The .h5ad file to write."""
    selection: Literal["loss", "accuracy", "last"] | None = None
    """Another checkpoint than the one the run selected."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["auto", "32", "bf16"] = "32"
    """Precision of the network."""
    threads: int | None = None
    """Processor threads; all cores if not given."""
    quiet: bool = False
    """No progress bar."""


class MeasureArguments(Arguments):
    """Score embeddings files."""

    embeddings: Positional[tuple[Path, ...]]
    """One or more .h5ad files."""
    out: Path
    """The Parquet file of scores to write."""
    seed: int = 0
    """Seed of the sub-samples that probes and neighbour graphs are computed on."""
    quiet: bool = False
    """No progress bar, no table."""


class SweepArguments(Arguments):
    """Run methods × settings × folds × seeds, select, and tabulate."""

    file: Positional[Path]
    """The sweep file."""
    out: Path
    """Directory of the sweep; runs that it holds are not done again."""
    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster."""
    workers: int | None = Field(None, ge=1)
    """Runs at a time; if not given, as many as cores hold the threads of a run, one on each CUDA
    device, or what the cluster holds."""
    address: str | None = None
    """Address of the Ray cluster; one is started here if not given."""
    embeddings: bool = False
    """Embed the selected runs as well."""
    quiet: bool = False
    """No progress bar, no table."""


class DiagnoseArguments(Arguments):
    """Will invariance help here? Accuracy in distribution against accuracy on held-out rows."""

    screen: Positional[Path]
    """Screen to diagnose."""
    out: Path
    """Directory to write; runs that it holds are not done again."""
    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster."""
    workers: int | None = Field(None, ge=1)
    """Runs at a time; as many as fit if not given."""
    address: str | None = None
    """Address of the Ray cluster; one is started here if not given."""
    quiet: bool = False
    """No progress bar."""


class TransferArguments(Arguments):
    """Swap content and style blocks between cells and draw the grid."""

    run: Positional[Path]
    """Directory of a finished run."""
    screen: Positional[Path]
    """Screen to take the cells from."""
    out: Path
    """Directory to write."""
    images: int = 8
    """Cells on each side of the grid."""
    seed: int = 0
    """Seed of the choice of cells."""


class ExportArguments(Arguments):
    """Write a screen as OME-TIFF files and table.csv, or profiles as Parquet."""

    screen: Positional[Path]
    """Screen to write."""
    out: Path
    """Directory to write; must not exist."""
    quiet: bool = False
    """No progress bar."""


class ReportArguments(Arguments):
    """Write one self-contained HTML page from runs, embeddings, scores and transfers."""

    directories: Positional[tuple[Path, ...]]
    """Directories or files to report on."""
    out: Path
    """The .html file to write."""


class CheckArguments(Arguments):
    """Verify every file of a screen or a run."""

    path: Positional[Path]
    """Directory of a screen, or of a run, finished or not."""


def _simulate(words: list[str]) -> None:
    from deconfound.data.simulate import SimulateConfig, simulate

    arguments = create_model(
        "SimulateArguments",
        __base__=NewScreenArguments,
        simulation=(SimulateConfig, SimulateConfig()),
        quiet=(bool, False),
    )
    parsed: Any = _parse(arguments, words, "simulate", "Make a screen of cells with planted truth.")
    screen = simulate(parsed.out, config=parsed.simulation, quiet=parsed.quiet)
    _say(f"{len(screen):,} cells in {screen.path}")


def _ingest(words: list[str]) -> None:
    from deconfound.data.arrays import ingest_array
    from deconfound.data.ingest import IngestConfig, ingest
    from deconfound.data.ingest_provenance import remarks
    from deconfound.data.profiles import ingest_profiles

    arguments = create_model(
        "WithFormats", __base__=IngestArguments, formats=(IngestConfig, IngestConfig())
    )
    parsed: Any = _parse(arguments, words, "ingest", IngestArguments.__doc__ or "")
    made_of = {
        "--images-root": parsed.images_root is not None,
        "--profiles": parsed.profiles,
        "--array": parsed.array is not None,
    }
    if sum(made_of.values()) != 1:
        raise UserError(f"ingest: expected one of {', '.join(made_of)}")
    if parsed.feature_columns and not parsed.profiles:
        raise UserError("ingest: --feature-columns belongs to --profiles; add it")
    if (parsed.array_key or parsed.array_axes) and parsed.array is None:
        raise UserError("ingest: --array-key and --array-axes belong to --array; add it")
    if parsed.table is None and not made_of["--images-root"]:
        raise UserError("ingest: name the table first: deconfound ingest TABLE …")
    common = {"config": parsed.formats, "quiet": parsed.quiet}
    if parsed.profiles:
        named = {"features": parsed.feature_columns}
        screen = ingest_profiles(parsed.table, parsed.out, **named, **common)
    elif parsed.array is not None:
        shape = {"key": parsed.array_key, "axes": parsed.array_axes}
        screen = ingest_array(parsed.table, parsed.array, parsed.out, **shape, **common)
    else:
        screen = ingest(parsed.table, parsed.images_root, parsed.out, **common)
    what = "profiles" if screen.holds_profiles else "images"
    _say(f"{len(screen):,} {what} in {screen.path}")
    for remark in remarks(screen.provenance):
        _say(remark)


def _source(words: list[str]) -> None:
    from deconfound.data import sources

    found = sources.discover()
    name = _name(words, "source", "data set", sorted(found))
    module = found[name]
    arguments = create_model(
        "SourceArguments",
        __base__=NewScreenArguments,
        root=(Path, ...),
        source=(module.Config, module.Config()),
    )
    parsed: Any = _parse(arguments, words[1:], f"source {name}", module.SUMMARY)
    screen = module.make(parsed.root, parsed.out, parsed.source)
    _say(f"{len(screen):,} images in {screen.path}")


def _describe(words: list[str]) -> None:
    from deconfound.describe import describe
    from deconfound.describe_page import text_tables

    parsed = _parse(DescribeArguments, words, "describe")
    description = describe(**dict(parsed))
    for table in text_tables(description, most=24, width=Console().width):
        _say("")
        _say(table.title)
        if table.rows:
            _print_table(table.columns, table.rows, plain=True)
        if table.note:
            _say(table.note)
    for warning in description.warnings:
        _say(f"! {warning}")
    if parsed.out is not None:
        _say(f"page in {parsed.out / 'describe.html'}")


def _fit(words: list[str]) -> None:
    from deconfound import methods, run
    from deconfound.fit import fit

    name = _name(words, "fit", "method", methods.names())
    words, config_file = _take_option(words[1:], "--config")
    default = (
        run.read_config(Path(config_file), name)
        if config_file
        else run.config_model(name)(method=name)
    )
    method = methods.load(name)
    arguments = create_model(
        "WithMethod",
        __base__=FitArguments,
        seed=(int, default.seed),
        method=(method.Options, default.options),
        data=(DataOptions, default.data),
        training=(TrainingOptions, default.training),
    )
    about = f"{method.SUMMARY}. {method.PAPER}. --config FILE.yaml sets defaults."
    parsed: Any = _parse(arguments, words, f"fit {name}", about)
    config = run.config_model(name)(
        method=name,
        seed=parsed.seed,
        data=parsed.data,
        training=parsed.training,
        options=parsed.method,
    )
    done = fit(config, parsed.screen, parsed.out, quiet=parsed.quiet, warn=_complain)
    _say(f"run in {done.path}")


def _embed(words: list[str]) -> None:
    from deconfound.embed import embed

    parsed = _parse(EmbedArguments, words, "embed")
    embedded = embed(**dict(parsed))
    _say(f"{len(embedded.table):,} embeddings in {parsed.out}")


def _measure(words: list[str]) -> None:
    from deconfound.measure import measure

    parsed = _parse(MeasureArguments, words, "measure")
    scores = measure(parsed.embeddings, parsed.out, seed=parsed.seed, quiet=parsed.quiet)
    if not parsed.quiet:
        shown = ["method", "fold", "seed", "representation", "metric", "part", "value", "note"]
        _print_table([*map(str, shown)], scores[shown].round(4).astype(str).to_numpy().tolist())
    _say(f"{len(scores)} scores in {parsed.out}")


def _sweep(words: list[str]) -> None:
    started = time.time()
    from deconfound.sweep import sweep
    from deconfound.sweep_table import read_shown_table

    parsed = _parse(SweepArguments, words, "sweep")
    if parsed.address is not None and parsed.executor != "ray":
        raise UserError("sweep: --address is of a Ray cluster; add --executor ray")
    done = sweep(**dict(parsed), started=started)
    if not parsed.quiet:
        shown = read_shown_table(parsed.out)
        _print_table(list(shown.columns), shown.to_numpy().tolist())
    _say(done.text())
    _say(f"tables, scores and runs in {parsed.out}")
    if done.failed:
        raise UserError(f"{done.failed} runs failed; {parsed.out / 'failures.csv'} says why")


def _diagnose(words: list[str]) -> None:
    from deconfound.diagnose import DiagnoseOptions, diagnose, sentences

    arguments = create_model(
        "WithDiagnosis", __base__=DiagnoseArguments, diagnosis=(DiagnoseOptions, DiagnoseOptions())
    )
    parsed: Any = _parse(arguments, words, "diagnose", DiagnoseArguments.__doc__ or "")
    found = diagnose(
        parsed.screen,
        parsed.out,
        parsed.diagnosis,
        executor=parsed.executor,
        workers=parsed.workers,
        address=parsed.address,
        quiet=parsed.quiet,
    )
    for sentence in sentences(found):
        _say(sentence)
    _say(f"picture and runs in {parsed.out}")


def _transfer(words: list[str]) -> None:
    from deconfound.transfer import transfer

    parsed = _parse(TransferArguments, words, "transfer")
    transfer(**dict(parsed))
    _say(f"swap grid in {parsed.out / 'swap.png'}")


def _export(words: list[str]) -> None:
    from deconfound.export import export

    parsed = _parse(ExportArguments, words, "export")
    command = export(**dict(parsed))
    _say(f"{parsed.out}; back to a screen with: {command}")


def _report(words: list[str]) -> None:
    from deconfound.report import report

    parsed = _parse(ReportArguments, words, "report")
    report(list(parsed.directories), parsed.out)
    _say(f"report in {parsed.out}")


def _check(words: list[str]) -> None:
    from deconfound.check import check

    parsed = _parse(CheckArguments, words, "check")
    _say(check(parsed.path))


def _demo(words: list[str]) -> None:
    from deconfound.demo import DemoOptions, demo

    arguments = create_model(
        "DemoArguments",
        __base__=Arguments,
        out=(Path, Path("demo")),
        demonstration=(DemoOptions, DemoOptions()),
        quiet=(bool, False),
    )
    about = "The main job on a simulated screen, to a report."
    parsed: Any = _parse(arguments, words, "demo", about)
    _say(f"report: {demo(parsed.out, parsed.demonstration, quiet=parsed.quiet).resolve()}")


def _methods(words: list[str]) -> None:
    from deconfound import methods

    _parse(Arguments, words, "methods", "List the methods.")
    classes = {name: methods.load(name) for name in methods.names()}
    _print_table(
        ["method", "what it is", "paper"],
        [[name, found.SUMMARY, found.PAPER] for name, found in classes.items()],
    )


def _metrics(words: list[str]) -> None:
    from deconfound.metrics import all_metrics

    _parse(Arguments, words, "metrics", "List the metrics.")
    _print_table(
        ["metric", "better", "range", "what it is", "paper"],
        [
            [m.name, m.better, f"{m.range[0]:g} … {m.range[1]:g}", m.summary, m.paper]
            for m in all_metrics().values()
        ],
    )


def _sources(words: list[str]) -> None:
    from deconfound.data import sources

    _parse(Arguments, words, "sources", "List the public data sets.")
    _print_table(
        ["source", "what it is", "paper"],
        [[name, module.SUMMARY, module.PAPER] for name, module in sources.discover().items()],
    )


VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (_demo, "the main job on a simulated screen, to an HTML report, in minutes"),
    "simulate": (_simulate, "make a screen of cells with planted truth"),
    "ingest": (_ingest, "make a screen of your table and images"),
    "source": (_source, "make a screen of a public data set"),
    "describe": (_describe, "what a screen holds, what can be held out, what is confounded"),
    "fit": (_fit, "train one method on one fold with one seed"),
    "embed": (_embed, "embed every image of a screen"),
    "measure": (_measure, "score embeddings"),
    "sweep": (_sweep, "methods × settings × folds × seeds, to one table"),
    "diagnose": (_diagnose, "will invariance help here? an answer before you train for it"),
    "transfer": (_transfer, "counterfactual images: swap content and style between cells"),
    "export": (_export, "a screen as OME-TIFF files and a table, or profiles as Parquet"),
    "report": (_report, "one HTML page of runs, embeddings and scores"),
    "check": (_check, "verify that every file of a screen or a run is whole"),
    "methods": (_methods, "list the methods"),
    "metrics": (_metrics, "list the metrics"),
    "sources": (_sources, "list the public data sets"),
}


RESUMED = ("fit", "embed", "demo", "sweep", "diagnose")
"""Verbs that go on where they were stopped."""
SAVED = ("fit", "sweep", "diagnose")
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
        _complain(str(error))
        sys.exit(2)
    except BrokenPipeError:  # its reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None or debug:
            raise
        reason = f"{os.fsdecode(error.filename)}: {error.strerror}"
        _complain(f"{reason}; check the path and its permissions")
        sys.exit(2)
    except KeyboardInterrupt as request:
        remedy = "resumes" if words[0] in RESUMED else "starts again, as nothing was written"
        said = str(request) or f"stopped; the same command {remedy}"
        _complain(said)
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
        raise UserError(f"unknown verb {words[0]!r}; {nearest(words[0], list(VERBS))}")
    else:
        VERBS[words[0]][0](words[1:])


def _name(words: list[str], verb: str, what: str, known: list[str]) -> str:
    """The name that follows a verb, before its flags."""
    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            print(f"deconfound {verb} NAME …   NAME is one of {', '.join(known)}")
            sys.exit(0)
        raise UserError(f"{verb}: name a {what} first; there are {', '.join(known)}")
    if words[0] not in known:
        raise UserError(f"unknown {what} {words[0]!r}; {nearest(words[0], known)}")
    return words[0]


def _take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """`words` without `option` and its value, and the value."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return words[:place] + words[place + 1 :], word.partition("=")[2]
        if word == option:
            if place + 1 == len(words):
                raise UserError(f"{option} needs a value")
            return words[:place] + words[place + 2 :], words[place + 1]
    return words, None


def _parse(model: type[Parsed], words: list[str], verb: str, about: str = "") -> Parsed:
    """The arguments of a verb; every mistake becomes one line."""
    spoken = io.StringIO()
    try:
        with contextlib.redirect_stderr(spoken):
            parsed, unknown = tyro.cli(
                model,
                args=words,
                prog=f"deconfound {verb}",
                description=about or model.__doc__,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][-1]).replace("_", "-")
        raise UserError(f"{verb}: {option} {problem['input']!r}: {problem['msg']}") from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{verb}: {_tyro_message(spoken.getvalue())}") from None
    if unknown:
        known = _flags(model)
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"see deconfound {verb} --help"
        raise UserError(f"{verb}: unknown option {unknown[0]!r}; {hint}")
    return parsed


def _flags(model: type[BaseModel]) -> list[str]:
    """Every flag a model of arguments gives rise to."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            found += _flags(kind)
        else:
            found.append("--" + name.replace("_", "-"))
    return found


def _tyro_message(text: str) -> str:
    """What an argument error says, without its box and its usage."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    inside = [line.strip("│ ").strip() for line in text.splitlines() if line.startswith("│")]
    kept = [line for line in inside if line and not set(line) <= set("─")]
    said = " ".join(kept) or _one_line(text)
    said = re.sub(
        r"Error parsing \w+: 1 validation error for \w+ (\w+) (.*?) \[type=.*", r"\1: \2", said
    )
    return re.split(r" Argument helptext:| For full helptext| For further information", said)[0]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    """One line on the terminal."""
    print(for_terminal(text))


def _complain(text: str) -> None:
    print(f"deconfound: {for_terminal(_one_line(text))}", file=sys.stderr)


def _print_table(columns: list[str], rows: list[list[str]], plain: bool = False) -> None:
    """A table with borders, or a `plain` one whose cells are wrapped and never cut."""
    table = Table(
        *(Column(_cell(column), overflow="fold" if plain else "ellipsis") for column in columns),
        box=box.SIMPLE_HEAD if plain else box.HEAVY_HEAD,
        show_header=any(columns),
        pad_edge=not plain,
        padding=(0, 1, 0, 0) if plain else (0, 1),
    )
    if plain:
        table.columns[0].min_width = min(32, max(len(row[0]) for row in rows))
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console()
    with console.capture() as shown:  # rich would end the process where the reader has gone
        console.print(table)
    print(shown.get(), end="")


def _cell(text: str) -> str:
    return escape(for_terminal(text))
