"""Finding methods by their files: every file of a folder defines one class."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import TypeVar

from deconfound.config import did_you_mean
from deconfound.errors import UserError

Kind = TypeVar("Kind")


def file_names(folder: Iterable[str]) -> list[str]:
    """The names of the modules in the `__path__` of a package, without its packages, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(folder) if not module.ispkg)


def class_of(name: str, kind: type[Kind], package: str, known: list[str], what: str) -> type[Kind]:
    """The class of this kind that the module `name` of a package defines.

    Raises UserError, naming the nearest, if `name`, which is a `what`, is not `known`, and unless
    the module defines exactly one such class.
    """
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")
    module = importlib.import_module(f"{package}.{name}")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{module.__file__}: holds {len(found)} {kind.__name__} classes; expected one"
        )
    return found[0]
