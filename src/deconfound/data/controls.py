"""Which rows of a table are negative controls."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.data.table import require_columns
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
        found = table[column].astype("string") == value
    elif CONTROL_TYPE in table.columns:
        column, value = CONTROL_TYPE, NEGATIVE
        found = table[column].astype("string") == value
    elif label is not None:
        column, value = label, NONTARGETING
        text = table[column].astype("string").str.lower()
        found = text.str.replace(r"[-_ ]", "", regex=True) == value
    else:
        raise UserError(
            f"{where}: no column {CONTROL_TYPE}; name the controls with --control COLUMN=VALUE"
        )
    controls = found.fillna(False).to_numpy(dtype=bool)
    if not controls.any():
        raise UserError(
            f"{where}: no controls, no row has {column} = {value}; name them with "
            "--control COLUMN=VALUE"
        )
    return controls
