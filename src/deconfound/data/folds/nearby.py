"""Labels that training saw close to what a fold holds out.

A label seen on the next plate is easier to name than one seen in other series alone (Pernice et
al., IST, section 5, where a held-out series shares few labels with any one training series).
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Mask
from deconfound.data.folds.fold import fold_key
from deconfound.data.tables.table import Roles, joined


def seen_nearby(
    table: pd.DataFrame, roles: Roles, fold: str, part: npt.NDArray[np.str_]
) -> Mask | None:
    """Whether training saw each row's label near the group that `fold` holds out: (N,) bool.

    Near is the group's parent: of a section its plate, of a plate its series. A group of the
    outermost level has none: of it a label is near if two or more training groups of that level
    hold it. `part` (N,) as in `Fold`. A row without a label is False. None where the fold holds out
    no group of a level, or no row is a training row.
    """
    column, found, group = fold_key(fold, roles).partition("=")
    train = part == "train"
    if not found or column not in roles.levels or roles.label is None or not train.any():
        return None
    label = joined(table, [roles.label])
    depth = roles.levels.index(column)
    if depth == 0:
        holders = joined(table, [column])[train].groupby(label[train]).nunique()
        known = holders.index[holders >= 2]
    else:
        columns = roles.levels[: depth + 1]
        held_out = table[(joined(table, columns) == group).fillna(False).to_numpy(dtype=bool)]
        parents = joined(held_out, columns[:-1]).unique()
        known = label[train & joined(table, columns[:-1]).isin(parents).to_numpy(bool)].unique()
    return np.asarray((label.isin(known) & label.notna()).to_numpy(dtype=bool))
