"""Post hoc methods: every file here but base.py is one, by its own name; there is no registry."""

import importlib
import inspect
import pkgutil

from deconfound.config import nearest
from deconfound.errors import UserError
from deconfound.methods.post_hoc.base import PostHoc


def names() -> list[str]:
    """The names of all post hoc methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str) -> type[PostHoc]:
    """The class of the file `name`.py; raises UserError naming the nearest post hoc method."""
    if name not in names():
        raise UserError(f"unknown post hoc method {name!r}; {nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, PostHoc) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"{module.__file__}: holds {len(found)} PostHoc classes; expected one")
    return found[0]
