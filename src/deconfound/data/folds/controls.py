"""Which rows of a table, and which labels, are negative controls: nothing was done to them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deconfound.arrays import Mask, Rows
from deconfound.config import did_you_mean
from deconfound.data.tables.keys import key, keys
from deconfound.data.tables.table import Coded, joined_key, require_columns
from deconfound.errors import UserError

CONTROL_TYPE = "Metadata_Control_Type"
NEGATIVE = "negcon"
NONTARGETING = "nontargeting"
"""A control's name among genes, whatever its hyphens and capitals."""


def control_rows(table: pd.DataFrame, label: str | None, named: str | None, where: str) -> Mask:
    """Whether each row is a negative control: (N,) bool, at least one is.

    `named` says which, as COLUMN=VALUE; otherwise those whose Metadata_Control_Type is negcon, and
    in a table without that column those whose `label` is nontargeting. Raises UserError if there
    is none.
    """
    if named is not None:
        column, sign, value = named.partition("=")
        if not sign or not value:
            raise UserError(f"--control {named}: expected COLUMN=VALUE")
        require_columns(table, [column], where)
    elif CONTROL_TYPE in table.columns:
        column, value = CONTROL_TYPE, NEGATIVE
    elif label is not None:
        column, value = label, NONTARGETING
    else:
        raise UserError(
            f"{where}: no column {CONTROL_TYPE}; name the controls with --control COLUMN=VALUE"
        )
    text = keys(table[column])
    if column == CONTROL_TYPE:
        controls = _of_type(table, value)
    elif named is not None:
        controls = _equal(table[column], value)
    else:
        text = text.str.lower().str.replace(r"[-_ ]", "", regex=True)
        controls = (text == value).fillna(False).to_numpy(dtype=bool)
    if not controls.any():
        remedy = "name them with --control COLUMN=VALUE"
        if named is not None:
            remedy = did_you_mean(value, sorted(text.dropna().unique()))
        raise UserError(f"{where}: no controls, no row has {column} = {value}; {remedy}")
    return controls


def marked_controls(
    table: pd.DataFrame, label: str | None, named: Sequence[str], where: str, remedy: str
) -> Mask:
    """Whether each row is of the labels `named`, or, if there are none, what `control_rows` finds.

    (N,) bool. Raises UserError, which ends with `remedy`, where controls are not known.
    """
    label = label if label in table.columns else None
    if named and label is not None:
        return (
            keys(table[label])
            .isin([joined_key(name, [label]) for name in named])
            .to_numpy(dtype=bool)
        )
    if CONTROL_TYPE not in table.columns and label is None:
        raise UserError(
            f"{where}: no column {CONTROL_TYPE} and none of labels, so which rows are negative "
            f"controls is unknown; add one, or {remedy}"
        )
    try:
        return control_rows(table, label, None, where)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; mark them, or {remedy}") from error


def negative(table: pd.DataFrame) -> Mask:
    """(N,) whether the Metadata_Control_Type of each row is negcon, whatever its capitals."""
    return _of_type(table, NEGATIVE)


def _of_type(table: pd.DataFrame, wanted: str) -> Mask:
    text = keys(table[CONTROL_TYPE]).str.casefold()
    return (text == key(wanted).casefold()).fillna(False).to_numpy(dtype=bool)


def _equal(values: pd.Series, wanted: str) -> Mask:
    """(N,) whether each value has the key of `wanted`, or is the same number."""
    same = keys(values) == joined_key(wanted, [str(values.name)])
    if pd.api.types.is_float_dtype(values.dtype):
        same |= values == pd.to_numeric(pd.Series([wanted]), errors="coerce").iloc[0]
    return same.fillna(False).to_numpy(dtype=bool)


def control_codes(
    table: pd.DataFrame,
    label: Coded,
    train: Rows,
    named: Sequence[str] = (),
    column: str | None = None,
) -> tuple[int, ...]:
    """Codes of the labels that are `named`, values of the label's `column`, ascending.

    If `named` is empty, the codes of the labels whose training rows all have "negcon" in
    Metadata_Control_Type; no label where the table lacks that column. Raises UserError if training
    lacks a label named.
    """
    wanted = [joined_key(name, [column or ""]) for name in named]
    for name in wanted:
        if name not in label.names:
            raise UserError(
                f"--controls {name}: no training row has this label; "
                f"{did_you_mean(name, list(label.names))}"
            )
    if wanted:
        return tuple(sorted({label.names.index(name) for name in wanted}))
    if CONTROL_TYPE not in table.columns:
        return ()
    code = label.codes[train]
    is_control = negative(table)[train]
    found = np.setdiff1d(code[is_control], code[~is_control])
    return tuple(int(one) for one in found if one >= 0)
