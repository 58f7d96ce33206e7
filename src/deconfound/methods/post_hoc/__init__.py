"""Post hoc methods: every file in this folder is one, by its own name; there is no registry."""

from deconfound.methods.contract.discovery import class_of, file_names
from deconfound.methods.contract.post_hoc import PostHoc


def names() -> list[str]:
    """The names of all post hoc methods, sorted."""
    return file_names(__path__)


def load(name: str) -> type[PostHoc]:
    """The class of the file `name`.py; raises UserError naming the nearest post hoc method."""
    return class_of(name, PostHoc, __name__, names(), "post hoc method")
