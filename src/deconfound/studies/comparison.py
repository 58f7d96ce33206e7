"""What a comparison is asked for, and what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import pandas as pd
from pydantic import Field

from deconfound.config import (
    Augment,
    DataOptions,
    InterventionOptions,
    Options,
    RelativeTo,
    StandardiseName,
    optional,
    validated,
)
from deconfound.errors import UserError, did_you_mean
from deconfound.evaluation.scores import read_scores
from deconfound.experiments.overhead import Summary
from deconfound.experiments.plan import MAX_RUNS
from deconfound.experiments.running.executors import ExecutorOptions, executor_options
from deconfound.reports.report import report
from deconfound.studies.verdict import Verdict

ViewName = Literal["verdict", "search", "levels", "trade-off"]
Changes = optional(InterventionOptions, leave_out=("intervene",))
"""Options of interventions, each None unless given."""


class CompareOptions(Options):
    """What is compared, and how it is shown."""

    view: ViewName | None = None
    """verdict: whether what is chosen without the held-out groups helps there, the default for a
    screen. levels: the table of Pernice et al. trade-off: whether invariance is likely to help.
    search: the settings taken, the default for a plan file."""
    methods: tuple[str, ...] = ()
    """Methods of a comparison on a screen: METHOD[+IMPUTER][+CORRECTION][+knn][=CONFIG.yaml], such
    as erm+ist and erm+symphony+knn, or recommended[+CORRECTION][+knn]; if not given erm,
    recommended and scbd, for a verdict also the correction of erm that fits the controls."""
    hold_out: tuple[str, ...] = ()
    """Levels to hold out group by group, also joined by commas, or LEVEL=GROUP; folds of a
    trade-off. If not given the outermost level, of --view levels all of them, and for a trade-off
    the screen's own split or its outermost level."""
    folds_per_level: int | None = Field(None, ge=1)
    """Groups held out at each level, drawn at random; all if not given."""
    draw_seed: int = 0
    """Seed of that draw."""
    seeds: tuple[int, ...] = ()
    """Seeds of every run; 0 1 2 if not given, and 0 1 for a trade-off."""
    images_root: Path | None = None
    """Of a table of images: the folder that its paths start from."""
    levels: tuple[str, ...] = ()
    """Of a table: nested levels, outermost first; found by their names if not given."""
    augment: Augment | None = None
    """Of a verdict: what is done to training images at random: none, or dihedral, crop, intensity,
    blur, noise, style, one or more, as `fit` explains them. Flips and quarter turns if not given;
    these are right for cells, wrong for digits."""
    budget: float | None = Field(None, gt=0)
    """Minutes that a verdict may take: groups, seeds and steps are cut to fit, by what a few steps
    of each method take here. Nothing is cut if not given."""
    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    standardise_by: str | None = None
    """`environment`, or a column such as Metadata_Plate, whose groups every method makes alike in
    pixels or features; one that training never saw by its own images, held-out ones too."""
    standardise_with: RelativeTo = "all"
    """Images of a group that its statistics are taken over: all, or its negative controls."""
    standardise: StandardiseName = "moments"
    """What becomes alike: moments (mean and sd), quantiles (a tone curve), spectra (a tone curve,
    then the channels' power and cross-spectra, of images alone) or robust (median and
    median absolute deviation)."""
    steps: int | None = Field(None, ge=1)
    """Training steps of every method, also of one with a configuration; its own if not given."""
    batch_size: int | None = Field(None, ge=1)
    """Images in a batch, for every method; its own if not given. For a trade-off 256 if not given,
    where the configurations say nothing."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a method ends in +knn."""
    max_runs: int = Field(MAX_RUNS, ge=1)
    """Runs that the comparison may have; more are refused."""
    tracker: str | None = None
    """Where metrics and options of every run are shown too: tensorboard[:DIRECTORY],
    wandb[:PROJECT] (offline unless WANDB_MODE says otherwise) or mlflow[:DIRECTORY or address];
    in --out if no place is given."""
    embeddings: bool = False
    """Of a plan file: embed the runs of the settings taken as well."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Of a trade-off: learning rates of ERM."""
    lengths: tuple[int, ...] = (50, 150, 450)
    """Of a trade-off: training steps of ERM; SCBD trains for the largest."""
    alphas: tuple[float, ...] = (0.0, 1.0, 4.0, 8.0)
    """Of a trade-off: weights of the invariance loss of SCBD; give none to leave the curve out."""
    cells: int | None = Field(None, ge=500)
    """Of the demonstration: simulated cells; 3,000 if not given."""
    seed: int = 0
    """Of the demonstration: seed of the screen and of the runs."""

    @property
    def data(self) -> DataOptions:
        """The data options that all runs on a screen share."""
        return DataOptions(
            label=self.label,
            environment=self.environment,
            levels=self.levels,
            standardise_by=self.standardise_by,
            standardise_with=self.standardise_with,
            standardise=self.standardise,
        )

    @property
    def given_data(self) -> dict[str, Any]:
        """The data options that differ from their defaults, as a plan file says them."""
        given = self.data.model_dump(mode="json", exclude_defaults=True)
        return {name: value for name, value in given.items() if value}


class Keywords(NamedTuple):
    """Keyword arguments of `compare`, by what they are for."""

    options: CompareOptions
    intervention: dict[str, Any]
    executors: ExecutorOptions


def by_keyword(options: CompareOptions, given: Mapping[str, Any]) -> Keywords:
    """`options` with those of `given` by their names, and what else is given.

    One value stands for a tuple of one. Raises UserError for a name that is no option, with the
    nearest, and a value that an option does not take.
    """
    models: tuple[type[Options], ...] = CompareOptions, Changes, ExecutorOptions
    known = [name for model in models for name in model.model_fields]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, "`deconfound compare --help` lists the options")
            raise UserError(f"compare: no option {name!r}; {hint}")
    own, changes, executors = (
        {name: _several(model, name, given[name]) for name in model.model_fields if name in given}
        for model in models
    )
    return Keywords(
        validated(CompareOptions, dict(options) | own, "compare") if own else options,
        changes,
        executor_options(executors),
    )


def _several(model: type[Options], name: str, value: Any) -> Any:
    takes_several = get_origin(model.model_fields[name].annotation) is tuple
    return (value,) if takes_several and isinstance(value, (str, int, float)) else value


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies."""

    shown: pd.DataFrame
    """The view as a table of text; empty where the view is a picture or a page."""
    sentences: list[str] = field(default_factory=list)
    """What the scores say, and what could not be held out."""
    summary: Summary | None = None
    """What this call did."""
    page: Path | None = None
    """The report of a study."""
    verdict: Verdict | None = None
    """Of a study: whether what was chosen helps."""
    out: Path | None = None
    """Directory of the comparison."""

    @property
    def scores(self) -> pd.DataFrame:
        """Every score of every run: the columns of a scores file, the entry, setting and run."""
        return read_scores(self._directory() / "scores.parquet")

    @property
    def best(self) -> str:
        """The method to use for the next group; raises UserError where there is no verdict."""
        if self.verdict is None:
            raise UserError("this comparison has no verdict; compare a screen or a table")
        return self.verdict.recommended

    def report(self, path: Path | str) -> None:
        """Write the page of the comparison; raises UserError as `deconfound.report` does."""
        report([self._directory()], Path(path))

    def _directory(self) -> Path:
        if self.out is None:
            raise UserError("this comparison has no directory; use what `compare` returns")
        return self.out

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences)
        return said + (self.shown.to_html(index=False, escape=True) if len(self.shown) else "")
