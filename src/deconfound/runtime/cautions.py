"""What the user should know of work that goes on: Python warnings, or lines on stderr."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deconfound.runtime.escaping import for_terminal


class Caution(UserWarning):
    """The work goes on, and its result is to be looked at with care."""


def caution(text: str) -> None:
    """Warn of something, once for each text."""
    warnings.warn(text, Caution, stacklevel=1)


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
