"""The verb measure: words of the command line to calls."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconfound.cli.documents import kept_clear, print_document, records
from deconfound.cli.parsing import parse
from deconfound.cli.printing import print_lines, say
from deconfound.cli.scoring_arguments import (
    ImputationArguments,
    MeasureArguments,
    RelationsArguments,
    RetrievalArguments,
    ScoresArguments,
)

if TYPE_CHECKING:
    import pandas as pd

EVERY = ("method", "fold", "seed", "representation", "metric", "part", "value", "note")
"""Columns that --all prints."""


def call_measure(words: list[str]) -> None:
    """Score embeddings, relations, retrieval or imputed images, by what is given."""
    form = _form(words)
    if form is not None:
        form([word for word in words if word != "--retrieval"])
        return
    parsed = parse(MeasureArguments, words, "measure")
    from deconfound.evaluation.measure import measure

    common: dict[str, Any] = {"seed": parsed.seed, "quiet": parsed.quiet}
    with kept_clear(parsed.as_json):
        scores = measure(parsed.embeddings, parsed.out, cluster=parsed.cluster(), **common)
    _say_scores(scores, parsed)


def call_relations(words: list[str]) -> None:
    """Score genes against known complexes and print the scores."""
    parsed = parse(RelationsArguments, words, "measure")
    from deconfound.evaluation.relations import relations

    with kept_clear(parsed.as_json):
        scores = relations(parsed.aggregates, parsed.out, complexes=parsed.complexes)
    _say_scores(scores, parsed)


def call_retrieval(words: list[str]) -> None:
    """Score the retrieval of profiles and print the scores."""
    parsed = parse(RetrievalArguments, words, "measure")
    from deconfound.evaluation.retrieval import retrieval

    shown = ("quiet", "all", "as_json")
    asked = {name: value for name, value in dict(parsed).items() if name not in shown}
    with kept_clear(parsed.as_json):
        scores = retrieval(**asked)
    _say_scores(scores, parsed)


def call_imputation(words: list[str]) -> None:
    """Score imputed images and print the scores."""
    parsed = parse(ImputationArguments, words, "measure")
    from deconfound.counterfactuals.judge import imputation

    shown = ("all", "as_json")
    asked = {name: value for name, value in dict(parsed).items() if name not in shown}
    with kept_clear(parsed.as_json):
        scores = imputation(**asked)
    _say_scores(scores, parsed)


def _form(words: list[str]) -> Callable[[list[str]], None] | None:
    """What else than embeddings the words give to score: a run, complexes, or retrieval."""
    if any(word.partition("=")[0] == "--complexes" for word in words):
        return call_relations
    asks = {"--retrieval", "--target", "--details", "--null-size", "--parts"}
    if asks & {word.partition("=")[0] for word in words}:
        return call_retrieval
    if any((Path(word) / "config.yaml").is_file() for word in words):
        return call_imputation
    return None


def _say_scores(scores: "pd.DataFrame", asked: ScoresArguments | ImputationArguments) -> None:
    """A dozen lines, or every score; with --quiet the last line alone, with --json a document."""
    from deconfound.cli.score_lines import score_lines

    if asked.as_json:
        print_document({"out": asked.out, "scores": records(scores)})
        return
    hint = ""
    if asked.all and not asked.quiet:
        rows = scores[list(EVERY)].round(4).to_numpy(dtype=object).tolist()
        print_lines(list(EVERY), [[str(value) for value in row] for row in rows])
    elif not asked.quiet:
        found = score_lines(scores)
        if found.caption:
            say(found.caption)
        print_lines(found.columns, found.rows)
        for line in found.below:
            say(line)
        hint = "; --all prints each"
    say(f"{len(scores)} scores in {asked.out}{hint}")
