"""Verbs that compare and tell: words of the command line to calls."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from deconfound.cli.arguments import (
    Arguments,
    CrossvalArguments,
    DiagnoseArguments,
    ReportArguments,
    SweepArguments,
)
from deconfound.cli.parsing import parse
from deconfound.cli.printing import print_table, say
from deconfound.errors import UserError

if TYPE_CHECKING:
    pass


def call_sweep(words: list[str]) -> None:
    """Do a sweep and print its table."""
    started = time.time()
    from deconfound.experiments.sweep import sweep
    from deconfound.experiments.table import read_shown_table

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
    from deconfound.experiments.held_out import CrossvalOptions
    from deconfound.studies.crossval import crossval, describe_folds

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
    from deconfound.studies.diagnose import DiagnoseOptions, diagnose, sentences

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


def call_report(words: list[str]) -> None:
    """Write a report."""
    from deconfound.reports.report import report

    parsed = parse(ReportArguments, words, "report")
    report(list(parsed.directories), parsed.out)
    say(f"report in {parsed.out}")


def call_demo(words: list[str]) -> None:
    """Run the demonstration."""
    from deconfound.studies.demo import DemoOptions, demo

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
