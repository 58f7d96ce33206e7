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
    values = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in values.to_dict("records")]
