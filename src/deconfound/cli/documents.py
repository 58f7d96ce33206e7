"""What verbs say with --json: one JSON document on stdout, and nothing else there."""

import contextlib
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from deconfound.display.numbers import without_nan

if TYPE_CHECKING:
    import pandas as pd


def kept_clear(asked: bool) -> AbstractContextManager[object]:
    """Within the block all that is printed goes to stderr, if a document was `asked` for."""
    return contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext()


def print_document(document: Mapping[str, Any]) -> None:
    """Print a document in ASCII, so that no terminal changes a letter; null for NaN and infinity.

    Paths are written as text.
    """
    print(json.dumps(without_nan(dict(document)), indent=1, default=str, allow_nan=False))


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a table, each with its columns by name; None where a value is missing."""
    columns = [
        [None if missing else value for value, missing in zip(values, values.isna(), strict=True)]
        for _, values in table.astype(object).items()
    ]
    names = list(map(str, table.columns))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
