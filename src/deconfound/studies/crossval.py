"""The first table of Pernice et al., IST, for any methods on any screen.

In distribution, mixing of the embedding, and macro-F1 on groups held out at every level.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import yaml
from pydantic import Field

from deconfound.config import DataOptions, Options, validated
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.experiments.execute import Done, execute
from deconfound.experiments.held_out import Folds, chosen_levels, level_titles
from deconfound.experiments.overhead import Summary
from deconfound.experiments.plan import make_plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.executors import ExecutorArguments, executor_options
from deconfound.experiments.verdict import Difference, paired_differences
from deconfound.experiments.words import read_rows
from deconfound.files import atomic
from deconfound.intervention.relative_style import style_reference
from deconfound.studies.ist_table import make_table, shown, write_crossval

IID = "iid"


class CrossvalOptions(Options):
    """What is held out, and how often."""

    levels: tuple[str, ...] = ()
    """Levels to hold out in turn, also joined by commas; all of the screen's if not given."""
    folds_per_level: int | None = Field(None, ge=1)
    """Groups held out at each level, drawn at random; all if not given."""
    draw_seed: int = 0
    """Seed of that draw."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of every run."""
    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    steps: int | None = Field(None, ge=1)
    """Training steps of every method, also of one with a configuration; its own if not given."""
    batch_size: int | None = Field(None, ge=1)
    """Images in a batch, for every method; the method's own number if not given."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a method ends in +knn."""

    @property
    def data(self) -> DataOptions:
        """The data options that all runs share."""
        return DataOptions(label=self.label, environment=self.environment)


@dataclass(frozen=True)
class Crossval:
    """What a cross-validation found."""

    table: pd.DataFrame
    """One row for each method, with the columns of `ist_table.make_table`."""
    shown: pd.DataFrame
    """The same as text."""
    folds: pd.DataFrame
    """Every group of every level, and the reason where it was not held out."""
    differences: list[Difference]
    """Of every other method from the first, over all groups held out."""
    summary: Summary

    @property
    def failed(self) -> int:
        """Runs that failed; failures.csv says why."""
        return self.summary.failed


def crossval(
    methods: tuple[str, ...],
    screen: Path,
    out: Path,
    options: CrossvalOptions | None = None,
    *,
    intervention: Mapping[str, Any] | None = None,
    quiet: bool = False,
    started: float | None = None,
    **executors: Unpack[ExecutorArguments],
) -> Crossval:
    """Train `methods` on an IID fold and on every fold of every level, and tabulate.

    A method is the name of a trained one, NAME=CONFIG.yaml for a recipe, or either with
    corrections after it: erm+knn, erm+symphony+knn; they are made of the embeddings of its runs.
    `intervention` holds values of `InterventionOptions` for methods trained on imputed images.
    Writes below the directory `out` what `execute` does, embeddings, folds.csv and table.csv, .md
    and .tex; a killed call resumes, and another call with more methods, seeds or folds trains only
    what is new. Raises UserError for an unknown method or level, a screen with one environment or
    nothing to hold out, if styles cannot be relative as asked, if `out` holds something else, and
    if every run failed.
    """
    began = time.time() if started is None else started
    options, where = options or CrossvalOptions(), executor_options(executors)
    out = Path(out)
    chains, entries = read_rows(methods, options.knn)
    opened = open_screen(screen)
    levels = chosen_levels(opened, options.levels)
    posed = Folds()
    folds = posed.choose(
        opened,
        levels,
        options.data,
        folds_per_level=options.folds_per_level,
        draw_seed=options.draw_seed,
    )
    given = intervention or {}
    if given.get("relative_style") is not None:
        style_reference(
            opened, roles_of(opened, options.data), given["relative_style"], (), (), None
        )
    file = out / "crossval.yaml"
    if out.exists() and any(out.iterdir()) and not file.is_file():
        raise UserError(f"{out}: exists and is not a cross-validation; choose another --out")
    held_out = folds.loc[folds["held_out"], ["level", "fold"]]
    wanted = plan_values(screen, entries, held_out["fold"].tolist(), options, given)
    wanted |= {"chains": [chain.word for chain in chains], "knn": options.knn}
    plan = make_plan(Path("compare"), validated(PlanFile, wanted, "compare"), posed)
    titles = level_titles(opened, levels)
    names = [chain.name for chain in chains]
    of_level = {
        level: held_out.loc[held_out["level"] == level, "fold"].tolist() for level in levels
    }
    with atomic.locked(out):
        atomic.write_text(file, yaml.safe_dump(wanted, sort_keys=False))
        atomic.write_text(out / "folds.csv", folds.to_csv(index=False))
        tables = []

        def view(done: Done) -> None:
            tables.append(make_table(done.scores, names, of_level))
            write_crossval(tables[0], titles, out)

        done, summary = execute(plan, out, where, view, quiet=quiet, began=began)
        if not done.results:
            raise UserError(f"{out}: every run failed; {out / 'failures.csv'} says why")
    told = paired_differences(done.scores, names[0], held_out["fold"].tolist())
    return Crossval(tables[0], shown(tables[0], titles), folds, told, summary)


def plan_values(
    screen: Path,
    entries: dict[str, dict[str, Any]],
    folds: list[str],
    options: CrossvalOptions,
    intervention: Mapping[str, Any],
) -> dict[str, Any]:
    """The plan that a cross-validation needs, as a plan file says it."""
    data = {"label": options.label, "environment": list(options.environment)}
    training = {"steps": options.steps, "batch_size": options.batch_size}
    given = {name: value for name, value in intervention.items() if value is not None}
    if given and not any("intervene" in entry for entry in entries.values()):
        flag = "--" + next(iter(given)).replace("_", "-")
        raise UserError(f"compare: {flag} belongs to METHOD+IMPUTER, such as erm+ist; add one")
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": [IID, *folds],
        "seeds": list(options.seeds),
        "data": {name: value for name, value in data.items() if value},
        "training": {name: value for name, value in training.items() if value},
        "methods": {
            name: entry | ({"intervention": given} if given and "intervene" in entry else {})
            for name, entry in entries.items()
        },
    }
