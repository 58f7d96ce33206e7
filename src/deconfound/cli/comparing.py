"""The verbs compare and report: words of the command line to calls."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from deconfound.cli.arguments import CompareArguments, ReportArguments
from deconfound.cli.documents import kept_clear, print_document, records
from deconfound.cli.parsing import parse
from deconfound.cli.printing import print_table, say
from deconfound.errors import UserError

if TYPE_CHECKING:
    from deconfound.studies.comparison import Comparison


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
    with kept_clear(parsed.as_json):
        found = compare(
            parsed.source,
            parsed.out,
            parsed.comparison,
            quiet=parsed.quiet,
            started=started,
            **dict(parsed.intervention),
            **dict(parsed.executors),
        )
    if parsed.as_json:
        print_document(_document(found))
    else:
        _say(found, parsed)
    if found.summary is not None and found.summary.failed:
        runs = f"{found.summary.failed} run" + "s" * (found.summary.failed > 1)
        raise UserError(f"{runs} failed; {parsed.out / 'failures.csv'} says why")


def _say(found: "Comparison", asked: CompareArguments) -> None:
    if len(found.shown) and not asked.quiet:
        print_table(list(found.shown.columns), found.shown.to_numpy().tolist())
    for sentence in found.sentences:
        say(sentence)
    if found.page is not None:
        say(f"report: {found.page.resolve()}")
    if found.summary is not None:
        say(found.summary.text())
        say(f"tables, scores and runs in {asked.out}")


def _document(found: "Comparison") -> dict[str, Any]:
    return {
        "out": found.out,
        "table": records(found.shown),
        "sentences": found.sentences,
        "verdict": None if found.verdict is None else found.verdict.record(),
        "summary": None if found.summary is None else asdict(found.summary),
        "report": None if found.page is None else found.page.resolve(),
    }


def call_report(words: list[str]) -> None:
    """Write a report."""
    parsed = parse(ReportArguments, words, "report")
    from deconfound.reports.report import report

    report(list(parsed.directories), parsed.out)
    say(f"report in {parsed.out}")
