"""Post hoc methods: every file in this folder is one, by its own name; there is no registry."""

import importlib

from deconfound.config import did_you_mean
from deconfound.errors import UserError
from deconfound.methods.contract.discovery import file_names, only_class
from deconfound.methods.contract.post_hoc import PostHoc


def names() -> list[str]:
    """The names of all post hoc methods, sorted."""
    return file_names(__path__)


def load(name: str) -> type[PostHoc]:
    """The class of the file `name`.py; raises UserError naming the nearest post hoc method."""
    if name not in names():
        raise UserError(f"unknown post hoc method {name!r}; {did_you_mean(name, names())}")
    return only_class(importlib.import_module(f"{__name__}.{name}"), PostHoc)
