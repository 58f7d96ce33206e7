"""Which rows of a table, and which labels, are negative controls: nothing was done to them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Rows
from deconfound.config import did_you_mean
from deconfound.data.tables.table import Coded, require_columns
from deconfound.errors import UserError

CONTROL_TYPE = "Metadata_Control_Type"
NEGATIVE = "negcon"
NONTARGETING = "nontargeting"
"""A control's name among genes, whatever its hyphens and capitals."""


def control_rows(
    table: pd.DataFrame, label: str | None, named: str | None, where: str
) -> npt.NDArray[np.bool_]:
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
    text = table[column].astype("string")
    if named is None and column != CONTROL_TYPE:
        text = text.str.lower().str.replace(r"[-_ ]", "", regex=True)
    controls = (text == value).fillna(False).to_numpy(dtype=bool)
    if not controls.any():
        raise UserError(
            f"{where}: no controls, no row has {column} = {value}; name them with "
            "--control COLUMN=VALUE"
        )
    return controls


def control_codes(
    table: pd.DataFrame, label: Coded, train: Rows, named: Sequence[str] = ()
) -> tuple[int, ...]:
    """Codes of the labels that are `named`, ascending.

    If `named` is empty, the codes of the labels whose training rows all have "negcon" in
    Metadata_Control_Type; no label where the table lacks that column. Raises UserError if training
    lacks a label named.
    """
    for name in named:
        if name not in label.names:
            raise UserError(
                f"--controls {name}: no training row has this label; "
                f"{did_you_mean(name, list(label.names))}"
            )
    if named:
        return tuple(sorted({label.names.index(name) for name in named}))
    if CONTROL_TYPE not in table.columns:
        return ()
    code = label.codes[train]
    is_control = (table[CONTROL_TYPE].iloc[train] == NEGATIVE).to_numpy(dtype=bool, na_value=False)
    found = np.setdiff1d(code[is_control], code[~is_control])
    return tuple(int(one) for one in found if one >= 0)
