"""Which labels are controls: cells that nothing was done to."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deconfound.config import nearest
from deconfound.data.screen import Rows
from deconfound.data.table import Coded
from deconfound.errors import UserError

CONTROL_TYPE, NEGATIVE = "Metadata_Control_Type", "negcon"


def control_codes(
    table: pd.DataFrame, label: Coded, train: Rows, named: Sequence[str] = ()
) -> tuple[int, ...]:
    """Codes of the labels that are `named`, ascending.

    If none is named, of those whose training rows all have "negcon" in Metadata_Control_Type; no
    label where the table lacks that column. Raises UserError if training lacks a label named.
    """
    for name in named:
        if name not in label.names:
            raise UserError(
                f"--controls {name}: no training row has this label; "
                f"{nearest(name, list(label.names))}"
            )
    if named:
        return tuple(sorted({label.names.index(name) for name in named}))
    if CONTROL_TYPE not in table.columns:
        return ()
    code = label.codes[train]
    is_control = (table[CONTROL_TYPE].iloc[train] == NEGATIVE).to_numpy(dtype=bool, na_value=False)
    found = np.setdiff1d(code[is_control], code[~is_control])
    return tuple(int(one) for one in found if one >= 0)
