"""Finding methods by their files: every file of a folder defines one class."""

import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

from deconfound.errors import UserError

Kind = TypeVar("Kind")


def file_names(folder: Iterable[str]) -> list[str]:
    """The names of the modules in the `__path__` of a package, without its packages, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(folder) if not module.ispkg)


def only_class(module: ModuleType, kind: type[Kind]) -> type[Kind]:
    """The class of this kind that a module defines; raises UserError unless it is exactly one."""
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
