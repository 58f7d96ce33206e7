"""Labels, environments and levels, given as arrays or as names of columns, put into a table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from deconfound.arrays import Mask
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.folds.fold import PARTS
from deconfound.data.tables.table import listed, require_columns
from deconfound.errors import UserError

TREATED = "trt"
"""Value of `Metadata_Control_Type` in rows that are no controls."""
HELD_OUT = "held_out"
"""Column of a mask of rows to hold out."""
SPLIT = "split"
"""Column of the part of each row."""


class Placed(NamedTuple):
    """A table, and the columns of it that were asked for."""

    table: pd.DataFrame
    columns: tuple[str, ...]


def place(table: pd.DataFrame, given: Any, what: str, where: str) -> Placed:
    """`table` (N rows) with the values of `what` that are `given`, and the columns they are in.

    A text is the name of a column, and a list of texts that are all columns names several. An
    array, Series or list of N values becomes a column, by the name of the Series or `what`; a
    DataFrame, or a mapping of names to arrays, several. Values go by position, not by index. Raises
    UserError for a column that is not there, and for another number of values than N.
    """
    if given is None:
        return Placed(table, ())
    if isinstance(given, str):
        if not len(table.columns):
            raise UserError(
                f"{where}: {what}={given!r} names a column, and there is no table of columns; give "
                "an array, or table= as well"
            )
        require_columns(table, [given], where)
        return Placed(table, (given,))
    if isinstance(given, (list, tuple)) and _are_names(given, table):
        require_columns(table, given, where)
        return Placed(table, tuple(given))
    if isinstance(given, (pd.DataFrame, Mapping)):
        named = {str(name): given[name] for name in given}
    elif isinstance(given, pd.Series) and isinstance(given.name, str):
        named = {given.name: given}
    else:
        named = {what: given}
    values = {name: values_of(one, len(table), what) for name, one in named.items()}
    return Placed(table.assign(**values), tuple(values))


def replace(
    table: pd.DataFrame, given: Any, columns: Sequence[str], what: str, where: str
) -> pd.DataFrame:
    """`table` with what is `given` of `what` under the names `columns`, which a model knows.

    As `place`; raises UserError also for another number of columns.
    """
    if given is None or not columns:
        return table
    placed = place(table, given, what, where)
    if len(placed.columns) != len(columns):
        raise UserError(
            f"{what}: {len(placed.columns)} column{'s' * (len(placed.columns) != 1)}; the model "
            f"was fitted on {' and '.join(columns)}, give one for each"
        )
    pairs = zip(columns, placed.columns, strict=True)
    found = {own: placed.table[column] for own, column in pairs}
    return table.assign(**found)


def with_controls(table: pd.DataFrame, controls: Any, where: str) -> pd.DataFrame:
    """`table` whose `Metadata_Control_Type` says which rows are negative controls, of a mask (N,).

    Raises UserError for a mask of another length.
    """
    marked = mask_of(controls, len(table), "controls")
    if marked is None:
        raise UserError(
            f"{where}: controls: expected names of labels, or True or False for each row"
        )
    return table.assign(**{CONTROL_TYPE: np.where(marked, NEGATIVE, TREATED)})


def are_labels(controls: Any, table: pd.DataFrame) -> tuple[str, ...] | None:
    """The labels that `controls` names; None where it marks rows."""
    if isinstance(controls, str):
        marks = controls in table.columns and pd.api.types.is_bool_dtype(table[controls])
        return None if marks else (controls,)
    if isinstance(controls, (list, tuple, set, frozenset)) and not _are_bools(controls):
        return tuple(map(str, controls))
    return None


class Held(NamedTuple):
    """How rows are held out."""

    table: pd.DataFrame
    fold: str
    """As `fit --fold` takes it."""
    level: str | None = None
    """A column that is to be the one level."""
    split: str | None = None
    """A column that is to be the split."""


def hold_out_of(table: pd.DataFrame, given: Any, where: str) -> Held:
    """What `hold_out` asks for: a fold by its name, a mask (N,) of rows, or the part (N,) of each.

    Raises UserError for anything else.
    """
    if isinstance(given, str):
        if given not in table.columns or given in ("iid", "given"):
            return Held(table, given)
        given = table[given]
    rows = mask_of(given, len(table), "hold_out")
    if rows is not None:
        said = np.where(rows, "yes", "no")
        return Held(table.assign(**{HELD_OUT: said}), f"{HELD_OUT}=yes", level=HELD_OUT)
    parts = pd.Series(values_of(given, len(table), "hold_out")).astype("string")
    unknown = sorted(set(parts.dropna()) - set(PARTS))
    if unknown:
        raise UserError(
            f"{where}: hold_out has {listed(map(repr, unknown), 3)}; expected COLUMN=GROUP, True "
            f"or False for each row, or for each row one of {', '.join(PARTS)}"
        )
    return Held(table.assign(**{SPLIT: parts.to_numpy(dtype=object)}), "given", split=SPLIT)


def mask_of(given: Any, rows: int, what: str) -> Mask | None:
    """(N,) of truth values; None where what is given is none. Raises UserError for another N."""
    values = pd.Series(values_of(given, rows, what))
    return values.to_numpy(dtype=bool) if pd.api.types.is_bool_dtype(values) else None


def values_of(given: Any, rows: int, what: str) -> Any:
    """The `rows` values of an array, tensor, Series or list; raises UserError for another number.

    Also for values that are not in one row after the other.
    """
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    values: Any
    if isinstance(given, (pd.Series, pd.Index)):
        values = given.array
    elif isinstance(given, pd.api.extensions.ExtensionArray):
        values = given
    elif np.ndim(given) == 1:
        values = given if isinstance(given, np.ndarray) else pd.Series(list(given)).array
    else:
        kind = type(given).__name__
        raise UserError(f"{what}: {kind}; expected a value for each of {rows:,} rows, or a column")
    if len(values) != rows:
        raise UserError(f"{what}: {len(values):,} values for {rows:,} rows; expected one for each")
    return values


def _are_names(given: Sequence[Any], table: pd.DataFrame) -> bool:
    """Whether a list is one of names of columns, and not one value for each row."""
    if not given or not all(isinstance(one, str) for one in given):
        return False
    known = set(given) <= set(table.columns)
    return known or (len(given) != len(table) and len(table.columns) > 0)


def _are_bools(given: Any) -> bool:
    return all(isinstance(one, (bool, np.bool_)) for one in given)
