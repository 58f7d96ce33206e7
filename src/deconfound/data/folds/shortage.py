"""Why a fold has no rows for a part, or too few labels to train on, and what helps."""

import math

import numpy as np
import pandas as pd

from deconfound.config import DataOptions
from deconfound.data.folds.fold import Fold, Part
from deconfound.data.folds.groups import well_units
from deconfound.data.tables.table import Coded, Roles, joined, listed
from deconfound.errors import UserError


def refuse_empty_part(
    table: pd.DataFrame, roles: Roles, fold: Fold, options: DataOptions, part: Part
) -> None:
    """Raise UserError if the fold, of `make_fold`, has no rows for `part`, with the cause."""
    if not len(fold.rows(part)):
        cause = _cause(table, roles, fold, options, part)
        raise UserError(f"fold {fold.name}: no rows for {part}; {cause}")


def refuse_few_labels(roles: Roles, fold: Fold, label: Coded, every: Coded) -> None:
    """Raise UserError if training has fewer than two labels, with the cause.

    `label` has the codes of training rows' labels, `every` those of all rows.
    """
    if len(label.names) > 1:
        return
    found = f"{len(label.names)} label" + "s" * (len(label.names) != 1)
    if len(every.names) < 2:
        remedy = f"so has column {roles.label!r} in all rows: choose another --label"
    elif not label.names:
        remedy = f"column {roles.label!r} is empty in its rows: fill it in, or choose another fold"
    else:
        others = listed((name for name in every.names if name not in label.names), 5)
        remedy = (
            f"all rows of the others ({others}) are in other parts: choose another fold, or "
            "another --label"
        )
    raise UserError(f"fold {fold.name}: training has {found}; expected 2 or more, {remedy}")


def _cause(table: pd.DataFrame, roles: Roles, fold: Fold, options: DataOptions, part: Part) -> str:
    if fold.name == "given":
        return f"no row of column {roles.split!r} says {part}; fill it in, or choose another --fold"
    drawn = np.isin(fold.part, ("train", "val", "id_test"))
    if fold.name == "iid":
        drawn = np.ones(len(table), dtype=bool)
    if part == "train":
        fractions = f"--val-fraction {options.val_fraction:g} and --id-test-fraction"
        return f"{fractions} {options.id_test_fraction:g} take them all; lower them"
    unit, column = "row", str(roles.label)
    members = table[drawn]
    if options.iid_unit == "well":
        unit = "well"
        members = members[~pd.Series(well_units(members, roles)).duplicated().to_numpy()]
    largest = int(joined(members, [column, *roles.environment]).value_counts().max())
    if largest > 2:
        enough = math.ceil(100 / largest + 1e-9) / 100
        return (
            f"a label has at most {largest} {unit}s in one environment, of which "
            f"{options.val_fraction:g} may be none; pass --val-fraction {enough:g}"
        )
    if members[column].nunique() == len(members):
        return f"each {unit} has its own label; choose another --label than {column!r}"
    few = f"a label has at most {largest} {unit}s in one environment, and up to 2 stay in training"
    remedies = ["ingest with a --split column and pass --fold given"]
    if len(roles.environment) > 1:
        remedies.insert(0, "name fewer columns of --environment")
    if unit == "well":
        remedies.insert(0, "draw rows with --iid-unit cell")
    return f"{few}; {', or '.join(remedies)}"
