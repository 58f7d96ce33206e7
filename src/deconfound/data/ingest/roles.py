"""The roles of a table's columns: those given or usual, what is proposed where one lacks, and
what is said of those chosen."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from deconfound.config import Options, flags_of, nearest
from deconfound.data.folds.controls import control_rows
from deconfound.data.ingest.paths import FOLDER_LABEL
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.identifiers import refuse_repeated_ids
from deconfound.data.tables.proposals import (
    environment_candidates,
    label_candidates,
    nested_around,
)
from deconfound.data.tables.table import (
    LEVEL_COLUMNS,
    Roles,
    columns_of,
    joined,
    listed,
    no_column,
    refuse_empty,
    together,
)
from deconfound.errors import UserError

if TYPE_CHECKING:
    from deconfound.data.ingest.images import IngestConfig

LABEL_COLUMNS = (
    "Metadata_Perturbation",
    "Metadata_Gene",
    "Metadata_sgRNA",
    "Metadata_JCP2022",
    "Metadata_Label",
)
ENVIRONMENT_COLUMN = "Metadata_Environment"
WELL_COLUMN = "Metadata_Well"
SPLIT_COLUMN = "Metadata_Split"
COLUMN = "COLUMN"
"""What a proposed command names where no column fits."""
MOST = 4
"""Other columns that are named beside a proposed one."""


class Problem(NamedTuple):
    """One thing that keeps a table from becoming a screen."""

    said: str
    """What is wrong, without the name of the table."""
    options: dict[str, Any]
    """Values of options that would mend it."""


def resolve_roles(
    table: pd.DataFrame,
    config: "IngestConfig",
    where: str,
    command: Sequence[str] = ("deconfound", "ingest"),
    *,
    row_is_image: bool = False,
    others: Callable[[], Sequence[Problem]] = tuple,
) -> Roles:
    """The columns' roles: those given, else the field's usual names where the table has them.

    Raises UserError for columns that are not there, and if label or environment remain without one:
    it lists the table's columns, and proposes a command, of the words `command` and the options,
    that names likely ones; what `others` finds is said there too. Raises UserError for an empty
    label, environment or level, for one label in all of several rows, and as `refuse_repeated_ids`
    does.
    """
    found = found_roles(set(map(str, table.columns)), config)
    if problems := role_problems(table, config):
        raise UserError(refusal(table, config, where, command, [*problems, *others()]))
    if config.percentile_by is not None and config.transform != "percentile":
        raise UserError("ingest: --percentile-by belongs to --transform percentile; add it")
    refuse_empty(table, found, where)
    _refuse_one_label(table, found, where)
    refuse_repeated_ids(table, found, where, row_is_image=row_is_image)
    return found


def role_problems(table: pd.DataFrame, config: "IngestConfig") -> list[Problem]:
    """Columns of roles that are named and not there, and the label or environment that lacks."""
    found = found_roles(set(map(str, table.columns)), config)
    problems = _unknown_columns(table, config)
    if found.label is None:
        problems.append(_no_label(table, found))
    if not found.environment:
        problems.append(_no_environment(table, found))
    return problems


def found_roles(present: set[str], config: "IngestConfig") -> Roles:
    """The roles given or usual; label and environment may lack.

    Raises UserError if a column is given twice as a level or as a part of the environment.
    """
    for option, given in (("--levels", config.levels), ("--environment", config.environment)):
        twice = [name for name in given if given.count(name) > 1]
        if twice:
            raise UserError(f"ingest: {option} names {twice[0]!r} twice; name it once")
    usual_labels = (FOLDER_LABEL,) if config.class_folders else LABEL_COLUMNS
    usual = tuple(name for name in LEVEL_COLUMNS if name in present)
    if ENVIRONMENT_COLUMN in present:
        environment = config.environment or (ENVIRONMENT_COLUMN,)
    else:
        environment = config.environment or config.levels or usual
    return Roles(
        label=config.label or next((name for name in usual_labels if name in present), None),
        environment=environment,
        levels=config.levels or usual or environment,
        well=config.well or (WELL_COLUMN if WELL_COLUMN in present else None),
        split=config.split or (SPLIT_COLUMN if SPLIT_COLUMN in present else None),
    )


def refusal(
    table: pd.DataFrame,
    config: Options,
    where: str,
    command: Sequence[str],
    problems: Sequence[Problem],
) -> str:
    """One line: every problem, the columns that there are, and the command that mends them."""
    options = {name: value for problem in problems for name, value in problem.options.items()}
    said = [problem.said for problem in problems]
    if not any(columns_of(table) in one for one in said):
        said.append(columns_of(table))
    mended = shlex.join([*command, *flags_of(config, options)])
    return f"{where}: {together([*said, f'try: {mended}'])}"


def roles_said(screen: Screen) -> str:
    """The roles of a screen in one line: label, environment, levels, well, split and controls.

    Controls are the rows that `control_rows` finds unless others are named.
    """
    roles, table = screen.roles, screen.table
    label = () if roles.label is None else (roles.label,)
    said = [
        f"label {_counted(table, label)}",
        f"environment {_counted(table, roles.environment)}",
        f"levels {' > '.join(roles.levels) or 'none'}",
        f"well {_counted(table, () if roles.well is None else (roles.well,))}",
    ]
    if roles.split is not None:
        said.append(f"split {roles.split}")
    try:
        controls = control_rows(table, roles.label, None, str(screen.path)).sum()
        said.append(f"controls {controls:,} rows")
    except UserError:
        said.append("controls none")
    return "; ".join(said)


def _counted(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Columns, and how many values they have."""
    return f"{' / '.join(columns)} ({joined(table, columns).nunique():,})" if columns else "none"


def _unknown_columns(table: pd.DataFrame, config: "IngestConfig") -> list[Problem]:
    """Every column that an option of a role names and the table lacks, with the nearest."""
    known = [str(column) for column in table.columns]
    problems = []
    for option in ("label", "environment", "levels", "well", "split", "percentile_by"):
        given = getattr(config, option)
        names = given if isinstance(given, tuple) else (given,)
        mended = tuple(
            name if name is None or name in known else nearest(name, known) or COLUMN
            for name in names
        )
        options = {option: mended if isinstance(given, tuple) else mended[0]}
        problems += [
            Problem(no_column(name, table), options)
            for name, other in zip(names, mended, strict=True)
            if name != other
        ]
    return problems


def _no_label(table: pd.DataFrame, found: Roles) -> Problem:
    likely, more = _likely(label_candidates(table, found.columns()), "--label")
    said = f"no label column (looked for {', '.join(LABEL_COLUMNS)}){more}"
    return Problem(said, {"label": likely})


def _no_environment(table: pd.DataFrame, found: Roles) -> Problem:
    candidates = environment_candidates(table, found.columns())
    likely, more = _likely(candidates, "--environment")
    levels = nested_around(table, likely, candidates[1:]) if candidates else [COLUMN]
    looked = ", ".join((ENVIRONMENT_COLUMN, *LEVEL_COLUMNS))
    said = f"no environment column (looked for {looked}){more}"
    return Problem(said, {"environment": (likely,), "levels": tuple(levels)})


def _likely(candidates: Sequence[str], option: str) -> tuple[str, str]:
    """The likeliest column, and what is said of the other ones."""
    others = listed(candidates[1:], MOST)
    return (candidates or [COLUMN])[0], f"; {option} could also be {others}" if others else ""


def _refuse_one_label(table: pd.DataFrame, roles: Roles, where: str) -> None:
    """Raise UserError if several rows have one label between them."""
    values = joined(table, [str(roles.label)])
    if values.nunique() > 1 or len(table) == 1:
        return
    likely = label_candidates(table, roles.columns())
    others = f"such as {listed(likely, MOST)}" if likely else columns_of(table)
    remedy = f"name another with --label ({others}), or add rows of other labels"
    if Path(where).is_dir():
        remedy = "add folders of other labels"
    raise UserError(
        f"{where}: label column {roles.label!r} has one value, {values.iloc[0]!r}, in all "
        f"{len(table)} rows, so there is nothing to learn; {remedy}"
    )
