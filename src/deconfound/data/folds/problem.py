"""What a run predicts on a screen: roles, fold, and the codes of labels and environments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import Mask, Rows
from deconfound.config import DataOptions, TransformName
from deconfound.data.folds.controls import control_codes, marked_controls
from deconfound.data.folds.fold import Fold, Part, make_fold, without_environment
from deconfound.data.folds.shortage import refuse_empty_part, refuse_few_labels
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.proposals import environment_candidates, label_candidates
from deconfound.data.tables.table import (
    Coded,
    Roles,
    columns_of,
    listed,
    require_columns,
    together,
)
from deconfound.errors import UserError

ENVIRONMENT = "environment"
"""The word that stands for the columns of the environment in --standardise-by."""
WITHOUT_CONTROLS = "choose --standardise-with all where the run is fitted"
"""The remedy where controls are not known."""


@dataclass(frozen=True)
class Problem:
    """A screen as one run sees it: roles, fold, codes."""

    roles: Roles
    fold: Fold
    label: Coded
    """Codes of all rows, numbered by the labels of training rows; −1 for any other."""
    environment: Coded
    """Codes of all rows, numbered by the environments of training rows; −1 for any other."""
    all_labels: Coded
    """Labels of all rows, whether training has them or not."""
    transform: TransformName
    """Intensity transform."""
    percentile_by: tuple[str, ...]
    """Columns (joined) whose groups share percentiles; a level comes with the levels around it."""
    group: Coded | None
    """Percentile or standardised group of every row; −1 for a group training does not have."""
    controls: tuple[int, ...] = ()
    """Codes of the labels that are controls."""
    standardise_by: tuple[str, ...] = ()
    """Columns (joined) whose groups are made alike; a level comes with the levels around it."""
    reference: Mask | None = None
    """(N,) whether a row may count in the statistics of its group; None where all may."""

    @property
    def control(self) -> Rows:
        """(N,) 1 where the label is a control, 0 where it is another, −1 where it is neither."""
        code = self.label.codes
        return np.where(code < 0, -1, np.isin(code, self.controls)).astype(np.int64)

    def untrained(self) -> dict[str, int]:
        """Labels of test rows that training lacks, with their number of test rows."""
        test = self.all_labels.codes[self.fold.rows("test")]
        codes, counts = np.unique(test[test >= 0], return_counts=True)
        named = {
            self.all_labels.names[code]: int(count)
            for code, count in zip(codes, counts, strict=True)
        }
        return {name: count for name, count in named.items() if name not in self.label.names}


def roles_of(screen: Screen, options: DataOptions) -> Roles:
    """The screen's roles, where the options name no others."""
    chosen = {name: getattr(options, name) for name in ("label", "environment", "levels")}
    return screen.roles.model_copy(update={name: one for name, one in chosen.items() if one})


def pose(screen: Screen, options: DataOptions) -> Problem:
    """Roles, fold and codes for a screen; label and environment names come from training rows.

    Raises UserError for a missing column, an impossible fold, an empty part, fewer than 2 labels in
    training, an environment that is the label under another name, a control that training lacks,
    or a group held out none of whose labels training has.
    """
    roles = roles_of(screen, options)
    if roles.label is None or not roles.environment:
        raise UserError(_without_roles(screen, roles))
    require_columns(screen.table, roles.columns(), str(screen.path))
    fold = make_fold(
        screen.table,
        roles,
        options.fold,
        val_fraction=options.val_fraction,
        id_test_fraction=options.id_test_fraction,
        unit=options.iid_unit,
        seed=options.split_seed,
    )
    needed: tuple[Part, ...] = ("train", "val")
    for part in needed:
        refuse_empty_part(screen.table, roles, fold, options, part)
    if options.without is not None:
        fold = without_environment(screen.table, roles, fold, options.without)
        for part in needed:
            if not len(fold.rows(part)):
                raise UserError(f"fold {fold.name}: no rows for {part}; leave out another one")
    train = fold.rows("train")
    label = _of_training(screen, [roles.label], train)
    environment = _of_training(screen, roles.environment, train)
    every_label = screen.coded([roles.label])
    refuse_few_labels(roles, fold, label, every_label)
    if not environment.names:
        raise UserError(f"fold {fold.name}: no training row has an environment")
    if _same_partition(label.codes[train], environment.codes[train]):
        raise UserError(
            f"fold {fold.name}: label {roles.label!r} and environment "
            f"{' / '.join(map(repr, roles.environment))} divide the training rows alike, so "
            "neither can be told from the other; choose another --environment"
        )
    transform, by = _transform(screen, options, roles)
    standardised = _standardised(screen, options, roles, by)
    groups = by or standardised
    problem = Problem(
        roles,
        fold,
        label,
        environment,
        every_label,
        transform,
        by,
        _of_training(screen, groups, train) if groups else None,
        control_codes(screen.table, label, train, options.controls, roles.label),
        standardised,
        _reference(screen, options, roles),
    )
    untrained = problem.untrained()
    labelled = int((every_label.codes[fold.rows("test")] >= 0).sum())
    if "=" in fold.name and labelled and sum(untrained.values()) == labelled:
        raise UserError(
            f"fold {fold.name}: none of its labels ({listed(untrained, 5)}) has a training row, so "
            "nothing could be scored; hold out another group, or choose another --label"
        )
    return problem


def _without_roles(screen: Screen, roles: Roles) -> str:
    lacking = {}
    if roles.label is None:
        lacking["label"] = label_candidates(screen.table, roles.columns())
    if not roles.environment:
        lacking["environment"] = environment_candidates(screen.table, roles.columns())
    said = [f"{screen.path}: names no {' and no '.join(lacking)} column", columns_of(screen.table)]
    flags = " ".join(f"--{name} {(likely or ['COLUMN'])[0]}" for name, likely in lacking.items())
    return together([*said, f"add {flags}"])


def _same_partition(label: Rows, environment: Rows) -> bool:
    """Whether each label has one environment and each environment one label; −1 is missing. False
    if there is only one label."""
    both = (label >= 0) & (environment >= 0)
    label, environment = label[both], environment[both]
    pairs = len(set(zip(label.tolist(), environment.tolist(), strict=True)))
    return 1 < pairs == len(np.unique(label)) == len(np.unique(environment))


def _transform(
    screen: Screen, options: DataOptions, roles: Roles
) -> tuple[TransformName, tuple[str, ...]]:
    """The transform and the columns of its percentile groups, by the options or the screen."""
    transform = options.transform or screen.index.transform
    by = options.percentile_by
    if by is None and options.transform is None:
        by = screen.index.percentile_by
    if by is None:
        return transform, ()
    if transform != "percentile":
        raise UserError(f"--percentile-by {by} belongs to --transform percentile; add it")
    return transform, with_levels_around(screen, roles, by)


def with_levels_around(screen: Screen, roles: Roles, column: str) -> tuple[str, ...]:
    """A column, after the levels around it if it is a level."""
    levels = roles.levels
    columns = levels[: levels.index(column) + 1] if column in levels else (column,)
    require_columns(screen.table, columns, str(screen.path))
    return columns


def _standardised(
    screen: Screen, options: DataOptions, roles: Roles, percentile_by: tuple[str, ...]
) -> tuple[str, ...]:
    """The columns of the groups that are made alike; none where the options name none."""
    by = options.standardise_by
    if by is None:
        for name in ("standardise_with", "standardise"):
            if getattr(options, name) != DataOptions.model_fields[name].default:
                flag = "--" + name.replace("_", "-")
                raise UserError(
                    f"{flag} {getattr(options, name)} belongs to --standardise-by; add it"
                )
        return ()
    if percentile_by:
        raise UserError(
            f"--standardise-by {by}: the percentiles of {percentile_by[-1]} make its groups alike "
            "already; leave one of both out, that of the screen by --transform none"
        )
    if by == ENVIRONMENT:
        return roles.environment
    return with_levels_around(screen, roles, by)


def _reference(screen: Screen, options: DataOptions, roles: Roles) -> Mask | None:
    if options.standardise_by is None or options.standardise_with == "all":
        return None
    where = str(screen.path)
    return marked_controls(screen.table, roles.label, options.controls, where, WITHOUT_CONTROLS)


def _of_training(screen: Screen, columns: Sequence[str], train: Rows) -> Coded:
    """Codes of all rows, numbered by the values of training rows."""
    every = screen.coded(columns)
    names = [every.names[code] for code in np.unique(every.codes[train]) if code >= 0]
    return screen.coded(columns, names)
