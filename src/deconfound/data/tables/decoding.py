"""Text that a Parquet table holds as bytes."""

from pathlib import Path

import pandas as pd
from pandas.api.types import is_object_dtype

from deconfound.errors import UserError


def decoded(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`table` of a Parquet file with text where it holds bytes, as some programs write text.

    Raises UserError for bytes that are no UTF-8.
    """
    for name in filter(lambda one: is_object_dtype(table[one].dtype), table.columns):
        if table[name].map(lambda value: isinstance(value, bytes)).any():
            try:
                table[name] = table[name].str.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: column {name!r} holds bytes that are no text of UTF-8; write it as "
                    "text, or drop it"
                ) from error
    return table
