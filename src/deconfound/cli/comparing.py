"""The verbs compare and report: words of the command line to calls."""

import time
from typing import Any

from pydantic import create_model

from deconfound.cli.arguments import CompareArguments, ReportArguments
from deconfound.cli.parsing import parse
from deconfound.cli.printing import print_table, say
from deconfound.errors import UserError


def call_compare(words: list[str]) -> None:
    """Compare methods, and print the view and what it says."""
    started = time.time()
    from deconfound.experiments.running.executors import ExecutorOptions
    from deconfound.studies.compare import compare
    from deconfound.studies.comparison import Changes, CompareOptions

    arguments = create_model(
        "WithOptions",
        __base__=CompareArguments,
        comparison=(CompareOptions, CompareOptions()),
        intervention=(Changes, Changes()),
        executors=(ExecutorOptions, ExecutorOptions()),
    )
    parsed: Any = parse(arguments, words, "compare", CompareArguments.__doc__ or "")
    found = compare(
        parsed.source,
        parsed.out,
        parsed.comparison,
        intervention=dict(parsed.intervention),
        quiet=parsed.quiet,
        started=started,
        **dict(parsed.executors),
    )
    if len(found.shown) and not parsed.quiet:
        print_table(list(found.shown.columns), found.shown.to_numpy().tolist())
    for sentence in found.sentences:
        say(sentence)
    if found.page is not None:
        say(f"report: {found.page.resolve()}")
    if found.summary is None:
        return
    say(found.summary.text())
    say(f"tables, scores and runs in {parsed.out}")
    if found.summary.failed:
        runs = f"{found.summary.failed} run" + "s" * (found.summary.failed > 1)
        raise UserError(f"{runs} failed; {parsed.out / 'failures.csv'} says why")


def call_report(words: list[str]) -> None:
    """Write a report."""
    from deconfound.reports.report import report

    parsed = parse(ReportArguments, words, "report")
    report(list(parsed.directories), parsed.out)
    say(f"report in {parsed.out}")
