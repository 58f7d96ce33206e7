"""Cautions as lines of text, where Python would name a line of code."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deconfound.errors import Caution
from deconfound.runtime.escaping import for_terminal


@contextmanager
def as_lines() -> Iterator[None]:
    """Have cautions printed as one line each on stderr, other warnings as they were."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Caution):
            print(f"deconfound: {for_terminal(' '.join(str(message).split()))}", file=sys.stderr)
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("default", Caution)
        yield
