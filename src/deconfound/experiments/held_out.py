"""What a cross-validation runs: the rows of its table, its folds, and the sweep of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from deconfound import methods
from deconfound.config import DataOptions, ImputeInto, Options, RelativeTo, did_you_mean
from deconfound.data.folds.groups import Group, groups
from deconfound.data.folds.problem import pose, roles_of
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.layout import PLATE
from deconfound.data.tables.table import joined, listed
from deconfound.errors import UserError
from deconfound.intervention.source_run import imputing_methods
from deconfound.methods import post_hoc
from deconfound.runs.config import read_config
from deconfound.runtime.seeds import numpy_stream

KNN = "knn"
INTERVENTION = ("bank", "style_images", "relative_style", "impute_into", "correction_draws")
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
    """The same of the images in a batch."""
    knn: int = Field(10, ge=1)
    """Neighbours that vote where a method ends in +knn."""
    bank: int | None = Field(None, ge=1)
    """Styles kept of each training environment, of methods trained on imputed images; the default
    of fit if not given."""
    style_images: int | None = Field(None, ge=1)
    """The same of the images that one style is averaged over."""
    relative_style: RelativeTo | None = None
    """The same of the images of an environment, all or its negative controls, from whose mean style
    an image keeps its distance."""
    impute_into: ImputeInto | None = None
    """The same of where images are imputed: into an environment drawn for each, or all into the
    mean style of the training environments."""
    correction_draws: int | None = Field(None, ge=0)
    """The same of the times that an image is imputed before it is embedded."""

    @property
    def data(self) -> DataOptions:
        """The data options that all runs share."""
        return DataOptions(label=self.label, environment=self.environment)


@dataclass(frozen=True)
class TableRow:
    """One row of the table: a trained method, and what is done to its embeddings."""

    name: str
    """As shown: "erm", "erm+ist", "erm+symphony+knn"."""
    entry: str
    """The sweep entry that is trained, such as "erm" or "erm+ist"; rows may share one."""
    correction: str | None = None
    """A post hoc method."""
    votes: bool = False
    """Whether training rows vote for the label."""

    @property
    def is_post_hoc(self) -> bool:
        """Whether the row is made of embeddings that another row's runs give."""
        return self.correction is not None or self.votes


def read_rows(words: tuple[str, ...]) -> tuple[list[TableRow], dict[str, dict[str, Any]]]:
    """The rows that METHOD[+IMPUTER][+CORRECTION][+knn][=CONFIG.yaml] name, and sweep entries.

    An imputer is a method that imputes, or the name of another word: the method is trained on what
    it imputes on the same fold and seed (erm+ist is the IST of Pernice et al.). Entries come by
    name; those of imputers are among them. Raises UserError for an unknown method, imputer or
    correction, corrections in another order, a correction whose extra is not installed, and two
    configurations of one name.
    """
    if not words:
        raise UserError("crossval: name one method or more, then the screen")
    named = [word.partition("=")[0].split("+")[0] for word in words]
    rows: dict[str, TableRow] = {}
    configs: dict[str, Path | None] = {}
    for word in words:
        name, _, file = word.partition("=")
        row = _row(name, named)
        rows[row.name] = row
        config = Path(file).resolve() if file else None
        entry = row.entry
        if config is not None and configs.get(entry) not in (None, config):
            raise UserError(f"crossval: {entry} has two configurations; give one of them a name")
        configs[entry] = config or configs.get(entry)
    for entry in list(configs):
        for part in entry.split("+"):
            configs.setdefault(part, None)
    wanted = {part for entry in {row.entry for row in rows.values()} for part in _needed(entry)}
    entries = {name: _entry(name, configs) for name in configs if name in wanted}
    return list(rows.values()), entries


def _needed(entry: str) -> list[str]:
    """The entry, and that of its imputer."""
    return [entry, *entry.split("+")[1:]]


def _row(word: str, named: list[str]) -> TableRow:
    first, *rest = word.split("+")
    corrections = [*post_hoc.names(), KNN]
    imputers = {*imputing_methods(), *named}
    imputer = rest[0] if rest and rest[0] in imputers else None
    done = rest if imputer is None else rest[1:]
    for step in done:
        if step not in corrections and step not in imputers:
            known = [*imputing_methods(), *corrections]
            hint = did_you_mean(step, known)
            raise UserError(f"crossval: {word}: {step!r} neither imputes nor corrects; {hint}")
    corrected = [step for step in done if step in post_hoc.names()]
    if len(corrected) > 1 or done != [*corrected, *[KNN] * (KNN in done)]:
        raise UserError(
            f"crossval: {word}: expected METHOD, one imputer at most, one correction at most, "
            "then knn"
        )
    entry = first if imputer is None else f"{first}+{imputer}"
    words, correction = [entry], None
    if corrected:
        correction = corrected[0]
        post_hoc.load(correction).require()
        words.append(post_hoc.load(correction).title(correction))
    return TableRow("+".join([*words, *[KNN] * (KNN in done)]), entry, correction, KNN in done)


def _entry(name: str, configs: dict[str, Path | None]) -> dict[str, Any]:
    """The sweep's entry of a name; with an imputer it is configured by itself or as its method."""
    first, _, imputer = name.partition("+")
    config = configs[name] or configs[first]
    found: dict[str, Any] = {}
    if config is not None:
        method = read_config(config, first if first in methods.names() else None).method
        found = {"method": method, "config": str(config)}
    else:
        methods.load(first)
        if imputer:
            found = {"method": first}
    return found | ({"intervene": imputer} if imputer else {})


def chosen_levels(screen: Screen, options: CrossvalOptions) -> list[str]:
    """The levels to hold out, innermost first, as level 1, 2, 3 of Pernice et al.

    Raises UserError for a level that the screen lacks, and for a column that is none of its
    nested levels.
    """
    own = screen.roles.levels
    if not own:
        raise UserError(f"{screen.path}: has no levels to hold out; ingest it with --levels")
    wanted = []
    for word in options.levels:
        wanted += [word] if word in own else [part.strip() for part in word.split(",")]
    for level in wanted:
        if level in own:
            continue
        if level in screen.table.columns:
            raise UserError(
                f"crossval: column {level!r} is not nested in the levels of {screen.path}, which "
                f"are {listed(own)}; hold out one of these, or ingest with other --levels"
            )
        raise UserError(f"crossval: unknown level {level!r}; {did_you_mean(level, list(own))}")
    return [level for level in reversed(own) if level in (wanted or own)]


def level_titles(screen: Screen, levels: list[str]) -> dict[str, str]:
    """Headings of columns by level, with its number in Pernice et al., innermost of the screen 1.

    Plates are level 2 there, also of a screen without sections (LINCS-SC).
    """
    inside_out = [*reversed(screen.roles.levels)]
    first = 2 if inside_out[0] == PLATE else 1
    return {level: f"Level-{first + inside_out.index(level)}: {level}" for level in levels}


def choose_folds(screen: Screen, levels: list[str], options: CrossvalOptions) -> pd.DataFrame:
    """Every group of the levels: level, fold, rows, held_out, and the reason where it is not.

    Raises UserError if the screen has one environment, or no fold at any level.
    """
    data = options.data
    pose(screen, data)
    environments = joined(screen.table, roles_of(screen, data).environment).nunique()
    if environments < 2:
        raise UserError(
            f"{screen.path}: has {environments} environment; expected 2 or more to compare, choose "
            "another --environment"
        )
    found = [row for level in levels for row in _groups_of(screen, level, options)]
    table = pd.DataFrame(found, columns=["level", "fold", "rows", "held_out", "reason"])
    if not table["held_out"].any():
        raise UserError(f"crossval: no group can be held out; {table['reason'].iloc[0]}")
    return table


def _groups_of(screen: Screen, level: str, options: CrossvalOptions) -> list[dict[str, Any]]:
    roles = roles_of(screen, options.data)
    every = groups(screen.table, roles, level)
    order = numpy_stream(options.draw_seed, "crossval folds", level).permutation(len(every))
    most = options.folds_per_level or len(every)
    held_out: dict[str, tuple[int, str]] = {}
    taken = 0
    for number in order:
        rows, reason = _why_not(screen, every[number], options, taken == most)
        taken += not reason
        held_out[every[number].fold] = rows, reason
    return [
        {
            "level": level,
            "fold": group.fold,
            "rows": held_out[group.fold][0],
            "held_out": not held_out[group.fold][1],
            "reason": held_out[group.fold][1],
        }
        for group in every
    ]


def _why_not(
    screen: Screen, group: Group, options: CrossvalOptions, enough: bool
) -> tuple[int, str]:
    """Test rows of a group's fold, and why it is not held out; empty where it is."""
    if group.refused is not None:
        return 0, group.refused
    if enough:
        return 0, f"not drawn: --folds-per-level {options.folds_per_level}"
    try:
        problem = pose(screen, options.data.model_copy(update={"fold": group.fold}))
    except UserError as error:
        return 0, str(error)
    return len(problem.fold.rows("test")), ""


def sweep_file(
    screen: Path, entries: dict[str, dict[str, Any]], folds: list[str], options: CrossvalOptions
) -> dict[str, Any]:
    """The sweep that a cross-validation needs, as a sweep file says it."""
    data = {"label": options.label, "environment": list(options.environment)}
    training = {"steps": options.steps, "batch_size": options.batch_size}
    asked = {name: getattr(options, name) for name in INTERVENTION}
    intervention = {name: value for name, value in asked.items() if value is not None}
    if intervention and not any("intervene" in entry for entry in entries.values()):
        flag = "--" + next(iter(intervention)).replace("_", "-")
        raise UserError(f"crossval: {flag} belongs to METHOD+IMPUTER, such as erm+ist; add one")
    for name, entry in entries.items():
        if "intervene" in entry and intervention:
            entries = entries | {name: entry | {"intervention": intervention}}
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": [IID, *folds],
        "seeds": list(options.seeds),
        "data": {name: value for name, value in data.items() if value},
        "training": {name: value for name, value in training.items() if value},
        "methods": entries,
    }
