"""Post hoc methods: every file here but base.py is one, by its own name; there is no registry."""

import importlib
import pkgutil

from deconfound.config import did_you_mean
from deconfound.errors import UserError
from deconfound.methods.base import only_class
from deconfound.methods.post_hoc.base import PostHoc


def names() -> list[str]:
    """The names of all post hoc methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str) -> type[PostHoc]:
    """The class of the file `name`.py; raises UserError naming the nearest post hoc method."""
    if name not in names():
        raise UserError(f"unknown post hoc method {name!r}; {did_you_mean(name, names())}")
    return only_class(importlib.import_module(f"{__name__}.{name}"), PostHoc)
