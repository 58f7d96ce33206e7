"""Every verb of the command line: its arguments parsed, the verb called, its result printed."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model
from rich.console import Console

from deconfound.cli_arguments import (
    AggregateArguments,
    Arguments,
    CellprofilerArguments,
    CheckArguments,
    CorrectArguments,
    CrossvalArguments,
    DescribeArguments,
    DiagnoseArguments,
    EmbedArguments,
    ExportArguments,
    FitArguments,
    ImputationArguments,
    IngestArguments,
    InjectArguments,
    MeasureArguments,
    NewScreenArguments,
    ProfilesArguments,
    RelationsArguments,
    ReportArguments,
    RetrievalArguments,
    SweepArguments,
    TransferArguments,
)
from deconfound.cli_parse import name_first, parse, take_option
from deconfound.cli_print import complain, print_table, say
from deconfound.config import DataOptions, InterventionOptions, TrainingOptions
from deconfound.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def call_simulate(words: list[str]) -> None:
    """Make a screen of cells with planted truth."""
    from deconfound.data.simulate import SimulateConfig, simulate

    arguments = create_model(
        "SimulateArguments",
        __base__=NewScreenArguments,
        simulation=(SimulateConfig, SimulateConfig()),
        quiet=(bool, False),
    )
    parsed: Any = parse(arguments, words, "simulate", "Make a screen of cells with planted truth.")
    screen = simulate(parsed.out, config=parsed.simulation, quiet=parsed.quiet)
    say(f"{len(screen):,} cells in {screen.path}")


def call_ingest(words: list[str]) -> None:
    """Make a screen of images, profiles or an array."""
    from deconfound.data.arrays import ingest_array
    from deconfound.data.ingest import IngestConfig, ingest
    from deconfound.data.ingest_provenance import remarks
    from deconfound.data.profiles import ingest_profiles

    arguments = create_model(
        "WithFormats", __base__=IngestArguments, formats=(IngestConfig, IngestConfig())
    )
    parsed: Any = parse(arguments, words, "ingest", IngestArguments.__doc__ or "")
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
    say(f"{len(screen):,} {what} in {screen.path}")
    for remark in remarks(screen.provenance):
        say(remark)


def call_inject(words: list[str]) -> None:
    """Put technical effects into the cells of a clean screen."""
    from deconfound.data.inject import InjectConfig, inject

    arguments = create_model(
        "WithEnvironments", __base__=InjectArguments, environments=(InjectConfig, InjectConfig())
    )
    parsed: Any = parse(arguments, words, "inject", InjectArguments.__doc__ or "")
    screen = inject(parsed.clean, parsed.out, config=parsed.environments, quiet=parsed.quiet)
    say(f"{len(screen):,} cells of {parsed.clean} with injected effects in {screen.path}")


def call_source(words: list[str]) -> None:
    """Make a screen of a public data set."""
    from deconfound.data import sources

    found = sources.discover()
    name = name_first(words, "source", "data set", sorted(found))
    module = found[name]
    arguments = create_model(
        "SourceArguments",
        __base__=NewScreenArguments,
        root=(Path, ...),
        source=(module.Config, module.Config()),
    )
    parsed: Any = parse(arguments, words[1:], f"source {name}", module.SUMMARY)
    screen = module.make(parsed.root, parsed.out, parsed.source)
    say(f"{len(screen):,} images in {screen.path}")


def call_describe(words: list[str]) -> None:
    """Print what a screen holds."""
    from deconfound.describe import describe
    from deconfound.describe_page import text_tables

    parsed = parse(DescribeArguments, words, "describe")
    description = describe(**dict(parsed))
    for table in text_tables(description, most=24, width=Console().width):
        say("")
        say(table.title)
        if table.rows:
            print_table(table.columns, table.rows, plain=True)
        if table.note:
            say(table.note)
    for warning in description.warnings:
        say(f"! {warning}")
    if parsed.out is not None:
        say(f"page in {parsed.out / 'describe.html'}")


def call_fit(words: list[str]) -> None:
    """Train a method."""
    from deconfound import methods, run
    from deconfound.fit import fit

    if words:
        methods.refuse_post_hoc(words[0])
    name = name_first(words, "fit", "method", methods.names())
    words, config_file = take_option(words[1:], "--config")
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
        intervention=(InterventionOptions, default.intervention),
        training=(TrainingOptions, default.training if config_file else TrainingOptions()),
    )
    about = f"{method.SUMMARY}. {method.PAPER}. --config FILE.yaml sets defaults."
    parsed: Any = parse(arguments, words, f"fit {name}", about)
    config = run.config_model(name)(
        method=name,
        seed=parsed.seed,
        data=parsed.data,
        intervention=parsed.intervention,
        training=parsed.training,
        options=parsed.method,
    )
    done = fit(config, parsed.screen, parsed.out, quiet=parsed.quiet, warn=complain)
    say(f"run in {done.path}")


def call_embed(words: list[str]) -> None:
    """Embed a screen."""
    from deconfound.embed import embed
    from deconfound.embed_shards import embed_shards

    parsed = parse(EmbedArguments, words, "embed")
    if parsed.out.suffix:
        rows = len(embed(**dict(parsed), say=say).table)
        say(f"{rows:,} embeddings in {parsed.out}")
    elif (index := embed_shards(**dict(parsed), say=say)) is not None:
        say(f"{index.rows:,} embeddings in {len(index.shards)} files in {parsed.out}")
    else:
        say(f"{parsed.out}: other processes have files of it to embed; the last one makes it")


def call_correct(words: list[str]) -> None:
    """Correct embeddings after training."""
    from deconfound.correct import KNN, correct, names
    from deconfound.methods import post_hoc

    name = name_first(words, "correct", "post hoc method", names())
    arguments: type[CorrectArguments] = CorrectArguments
    about = "No correction: the k nearest training rows vote for every row's label."
    if name != KNN:
        method = post_hoc.load(name)
        arguments = create_model(
            "WithPostHoc", __base__=CorrectArguments, method=(method.Options, method.Options())
        )
        about = f"{method.SUMMARY}. {method.PAPER}."
    parsed: Any = parse(arguments, words[1:], f"correct {name}", about)
    done = correct(
        name,
        parsed.embeddings,
        parsed.out,
        None if name == KNN else parsed.method,
        representation=parsed.representation,
        knn=parsed.knn,
        reference=parsed.reference,
        control=parsed.control,
    )
    if done.about["saw_held_out"]:
        complain(f"{parsed.out}: held-out rows took part; every score says so")
    say(f"{len(done.table):,} embeddings of {done.about['method']} in {parsed.out}")


def call_measure(words: list[str]) -> None:
    """Score embeddings and print the scores."""
    from deconfound.measure import measure

    parsed = parse(MeasureArguments, words, "measure")
    scores = measure(parsed.embeddings, parsed.out, seed=parsed.seed, quiet=parsed.quiet)
    _say_scores(scores, parsed.out, parsed.quiet)


def call_cellprofiler(words: list[str]) -> None:
    """Measure CellProfiler's features."""
    from deconfound.cellprofiler import cellprofiler

    parsed = parse(CellprofilerArguments, words, "cellprofiler")
    made = cellprofiler(**dict(parsed))
    say(f"{len(made):,} profiles of {len(made.channels):,} features in {made.path}")


def call_profiles(words: list[str]) -> None:
    """Write profiles as an embeddings file."""
    from deconfound.profiles import profiles

    arguments = create_model(
        "WithData", __base__=ProfilesArguments, data=(DataOptions, DataOptions())
    )
    parsed: Any = parse(arguments, words, "profiles", ProfilesArguments.__doc__ or "")
    made = profiles(parsed.screen, parsed.out, parsed.data)
    say(f"{len(made.table):,} profiles in {parsed.out}")


def call_aggregate(words: list[str]) -> None:
    """Average cells per guide and gene."""
    from deconfound.aggregate import AggregateOptions, aggregate

    arguments = create_model(
        "WithLevels", __base__=AggregateArguments, levels=(AggregateOptions, AggregateOptions())
    )
    parsed: Any = parse(arguments, words, "aggregate", AggregateArguments.__doc__ or "")
    made = aggregate(parsed.embeddings, parsed.out, parsed.levels, quiet=parsed.quiet)
    of = {"gene": "genes", "guide": "guides"}[parsed.levels.level]
    say(f"{len(made.table):,} rows of {of}, {made.control.sum()} of controls, in {parsed.out}")


def call_relations(words: list[str]) -> None:
    """Score genes against known complexes and print the scores."""
    from deconfound.relations import relations

    parsed = parse(RelationsArguments, words, "relations")
    scores = relations(parsed.aggregates, parsed.out, complexes=parsed.complexes)
    _say_scores(scores, parsed.out, parsed.quiet)


def call_retrieval(words: list[str]) -> None:
    """Score the retrieval of profiles and print the scores."""
    from deconfound.retrieval import retrieval

    parsed = parse(RetrievalArguments, words, "retrieval")
    asked = {name: value for name, value in dict(parsed).items() if name != "quiet"}
    scores = retrieval(**asked)
    _say_scores(scores, parsed.out, parsed.quiet)


def call_imputation(words: list[str]) -> None:
    """Score imputed images and print the scores."""
    from deconfound.imputation import imputation

    parsed = parse(ImputationArguments, words, "imputation")
    _say_scores(imputation(**dict(parsed)), parsed.out, parsed.quiet)


def _say_scores(scores: "pd.DataFrame", out: Path, quiet: bool) -> None:
    if not quiet:
        shown = ["method", "fold", "seed", "representation", "metric", "part", "value", "note"]
        print_table([*map(str, shown)], scores[shown].round(4).astype(str).to_numpy().tolist())
    say(f"{len(scores)} scores in {out}")


def call_sweep(words: list[str]) -> None:
    """Do a sweep and print its table."""
    started = time.time()
    from deconfound.sweep import sweep
    from deconfound.sweep_table import read_shown_table

    parsed = parse(SweepArguments, words, "sweep")
    if parsed.address is not None and parsed.executor != "ray":
        raise UserError("sweep: --address is of a Ray cluster; add --executor ray")
    done = sweep(**dict(parsed), started=started)
    if not parsed.quiet:
        shown = read_shown_table(parsed.out)
        print_table(list(shown.columns), shown.to_numpy().tolist())
    say(done.text())
    say(f"tables, scores and runs in {parsed.out}")
    if done.failed:
        runs = f"{done.failed} run" + "s" * (done.failed > 1)
        raise UserError(f"{runs} failed; {parsed.out / 'failures.csv'} says why")


def call_crossval(words: list[str]) -> None:
    """Cross-validate methods over the levels of a screen and print the table."""
    from deconfound.crossval import crossval, describe_folds
    from deconfound.crossval_plan import CrossvalOptions

    arguments = create_model(
        "WithFolds", __base__=CrossvalArguments, folds=(CrossvalOptions, CrossvalOptions())
    )
    parsed: Any = parse(arguments, words, "crossval", CrossvalArguments.__doc__ or "")
    if not parsed.methods_and_screen:
        raise UserError("crossval: name one method or more, then the screen")
    *named, screen = parsed.methods_and_screen
    found = crossval(
        tuple(named),
        Path(screen),
        parsed.out,
        parsed.folds,
        executor=parsed.executor,
        workers=parsed.workers,
        address=parsed.address,
        quiet=parsed.quiet,
    )
    if not parsed.quiet:
        print_table(list(found.shown.columns), found.shown.to_numpy().tolist())
    for line in describe_folds(found.folds):
        say(line)
    say(f"tables, scores and runs in {parsed.out}")
    if found.failed:
        failures = parsed.out / "sweep" / "failures.csv"
        raise UserError(f"{found.failed} runs failed; {failures} says why")


def call_diagnose(words: list[str]) -> None:
    """Diagnose a screen and print what was found."""
    from deconfound.diagnose import DiagnoseOptions, diagnose, sentences

    arguments = create_model(
        "WithDiagnosis", __base__=DiagnoseArguments, diagnosis=(DiagnoseOptions, DiagnoseOptions())
    )
    parsed: Any = parse(arguments, words, "diagnose", DiagnoseArguments.__doc__ or "")
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
        say(sentence)
    say(f"picture and runs in {parsed.out}")


def call_transfer(words: list[str]) -> None:
    """Draw a swap grid, or impute a screen."""
    from deconfound.transfer import transfer
    from deconfound.transfer_imputed import impute

    parsed = parse(TransferArguments, words, "transfer")
    common: dict[str, Any] = {"images": parsed.images, "seed": parsed.seed}
    paths = parsed.run, parsed.screen, parsed.out
    if parsed.to is None:
        transfer(*paths, **common)
        say(f"swap grid in {parsed.out / 'swap.png'}")
        return
    done = impute(*paths, to=parsed.to, quiet=parsed.quiet, **common)
    shares = done.landing.shares()
    clipped = f"{100 * done.clipped:.2g} % of values clipped"
    say(f"{len(done.rows):,} images in {done.screen.path}, {clipped}")
    say(
        f"of the {shares['neighbors']} real cells nearest to an imputed one "
        f"{100 * shares['imputed']:.0f} % are of {parsed.to}, {100 * shares['originals']:.0f} % "
        f"before; pictures in {parsed.out}"
    )


def call_export(words: list[str]) -> None:
    """Write a screen as common files."""
    from deconfound.export import export

    parsed = parse(ExportArguments, words, "export")
    command = export(**dict(parsed))
    say(f"{parsed.out}; back to a screen with: {command}")


def call_report(words: list[str]) -> None:
    """Write a report."""
    from deconfound.report import report

    parsed = parse(ReportArguments, words, "report")
    report(list(parsed.directories), parsed.out)
    say(f"report in {parsed.out}")


def call_check(words: list[str]) -> None:
    """Verify a screen or a run."""
    from deconfound.check import check

    parsed = parse(CheckArguments, words, "check")
    say(check(parsed.path))


def call_demo(words: list[str]) -> None:
    """Run the demonstration."""
    from deconfound.demo import DemoOptions, demo

    arguments = create_model(
        "DemoArguments",
        __base__=Arguments,
        out=(Path, Path("demo")),
        demonstration=(DemoOptions, DemoOptions()),
        quiet=(bool, False),
    )
    about = "The main job on a simulated screen, to a report."
    parsed: Any = parse(arguments, words, "demo", about)
    say(f"report: {demo(parsed.out, parsed.demonstration, quiet=parsed.quiet).resolve()}")


def list_methods(words: list[str]) -> None:
    """Print the methods."""
    from deconfound import methods
    from deconfound.methods import post_hoc

    parse(Arguments, words, "methods", "List the methods.")
    rows = [[name, (found := methods.load(name)).SUMMARY, found.PAPER] for name in methods.names()]
    for name in post_hoc.names():
        correction = post_hoc.load(name)
        rows.append([f"{name} (post hoc)", correction.SUMMARY, correction.PAPER])
    print_table(["method", "what it is", "paper"], rows)


def list_metrics(words: list[str]) -> None:
    """Print the metrics."""
    from deconfound.metrics import all_metrics

    parse(Arguments, words, "metrics", "List the metrics.")
    print_table(
        ["metric", "better", "range", "what it is", "paper"],
        [
            [m.name, m.better, f"{m.range[0]:g} … {m.range[1]:g}", m.summary, m.paper]
            for m in all_metrics().values()
        ],
    )


def list_sources(words: list[str]) -> None:
    """Print the data sets."""
    from deconfound.data import sources

    parse(Arguments, words, "sources", "List the public data sets.")
    print_table(
        ["source", "what it is", "paper"],
        [[name, module.SUMMARY, module.PAPER] for name, module in sources.discover().items()],
    )
