"""Lines of libraries, which are shown with --debug alone; and the warnings that are our own."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from deconfound.errors import InputWarning

DEBUG = "DECONFOUND_DEBUG"
"""Variable of the environment that is set with --debug, for the processes of a command too."""


def debugging() -> bool:
    """Whether tracebacks and lines of libraries are asked for."""
    return bool(os.environ.get(DEBUG))


@contextmanager
def own_lines(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block `say` takes every `InputWarning`, each message once.

    Other warnings, log lines below errors, and errors of objects that are being removed are of
    libraries: they are not shown unless `debugging`.
    """
    hook, level = sys.unraisablehook, logging.root.manager.disable
    with warnings.catch_warnings():
        of_others = warnings.showwarning
        said: set[str] = set()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, InputWarning):
                if debugging():
                    of_others(message, category, filename, lineno, file, line)
            elif str(message) not in said:
                said.add(str(message))
                say(f"warning: {message}")

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        if not debugging():
            logging.disable(logging.WARNING)
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            sys.unraisablehook = lambda _: None
        try:
            yield
        finally:
            logging.disable(level)
            sys.unraisablehook = hook
