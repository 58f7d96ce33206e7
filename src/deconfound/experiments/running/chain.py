"""What is done with a run when it is trained: embed, correct, measure; each step is a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.data.readers.blocks import no_block
from deconfound.embeddings.correct import KNN, correct
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import read_embeddings
from deconfound.evaluation.measure import measure, prediction_scores
from deconfound.evaluation.scores import COLUMNS, score_row
from deconfound.experiments.running.messages import (
    chain_scores_file,
    embeddings_file,
    run_directory,
)
from deconfound.files import seal
from deconfound.methods import post_hoc


@dataclass(frozen=True)
class Chain:
    """One row of a table: an entry's runs, and what is done to their embeddings."""

    name: str
    """As shown: "erm", "erm+ist", "erm+symphony+knn"."""
    entry: str
    """The entry that is trained, such as "erm" or "erm+ist"; chains may share one."""
    correction: str | None = None
    """A post hoc method."""
    knn: int | None = None
    """How many training rows vote for the label; None for no vote."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the correction that differ from its defaults."""

    @property
    def is_post_hoc(self) -> bool:
        """Whether the chain does something to the embeddings of its entry's runs."""
        return self.correction is not None or self.knn is not None

    @property
    def word(self) -> str:
        """The chain as a plan file names it."""
        return "+".join(filter(None, [self.entry, self.correction, KNN if self.knn else None]))

    def stem(self, run: str) -> str:
        """The name, without an end, of the files that the chain makes of a run."""
        words = [run]
        if self.correction is not None:
            text = json.dumps(self.options, sort_keys=True)
            told = f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if self.options else ""
            words.append(self.correction + told)
        if self.knn is not None:
            words.append(f"{KNN}{self.knn}")
        return "+".join(words)


@dataclass(frozen=True)
class Task:
    """A chain to do with one run."""

    chain: Chain
    whole: bool
    """Whether every metric measures the embedding; else the predicted labels alone are scored."""

    @property
    def embeds(self) -> bool:
        """Whether there is more to do than the run's own predictions."""
        return self.whole or self.chain.is_post_hoc

    def file(self, out: Path, run: str) -> Path:
        """The scores of this task; `whole` ones are kept apart."""
        stem = self.chain.stem(run)
        return chain_scores_file(out, stem if self.whole else f"{stem}-predictions")


def tasks_text(tasks: Sequence[Task]) -> str:
    """Tasks as the text of an order."""
    return json.dumps([asdict(task) for task in tasks])


def tasks_of(text: str) -> list[Task]:
    """The tasks that `tasks_text` wrote."""
    return [Task(Chain(**one["chain"]), one["whole"]) for one in json.loads(text)]


def waiting(tasks: Sequence[Task], out: Path, run: str) -> list[Task]:
    """The tasks of a run that have no scores yet."""
    return [task for task in tasks if task.embeds and not task.file(out, run).is_file()]


def do_tasks(
    tasks: Sequence[Task], out: Path, run: str, screen: Path, *, device: str, threads: int | None
) -> None:
    """Embed the run, correct and measure as each task asks; what is there is not made again.

    Raises UserError where a correction refuses the embeddings.
    """
    for task in tasks:
        if not waiting([task], out, run):
            continue
        source = embedded(out, run, screen, device=device, threads=threads)
        file = source
        if task.chain.is_post_hoc:
            file = corrected(task.chain, source, embeddings_file(out, task.chain.stem(run)))
        if task.whole:
            measure([file], task.file(out, run), quiet=True)
            continue
        opened = read_embeddings(file, no_block)
        fold = str(opened.about["fold"])
        found = [score_row(opened.about, fold, score) for score in prediction_scores(opened)]
        seal.write_frame(task.file(out, run), pd.DataFrame(found, columns=COLUMNS))


def embedded(out: Path, run: str, screen: Path, *, device: str, threads: int | None) -> Path:
    """The embeddings file of a run, made unless it is there."""
    file = embeddings_file(out, run)
    if not file.exists():
        source = run_directory(out, run)
        embed(source, screen, file, device=device, threads=threads, quiet=True)
    return file


def corrected(chain: Chain, source: Path, file: Path) -> Path:
    """The file of what a post hoc chain makes of the embeddings `source`, made unless it is there.

    Of a run with a content block the content is corrected. Raises UserError as `correct` does.
    """
    if not file.exists():
        method = chain.correction or KNN
        options = None
        if chain.correction is not None and chain.options:
            options = post_hoc.load(method).Options.model_validate(chain.options)
        names = list(read_embeddings(source).representations)
        correct(method, source, file, options, representation=main_block(names), knn=chain.knn)
    return file


def main_block(names: Sequence[str]) -> str:
    """The block of a method's embeddings that follows the label."""
    return "content" if "content" in names else "representation"
