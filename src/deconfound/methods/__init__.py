"""Methods: every file in this folder is one, by its own name; there is no registry.

The folder `contract` says what a method is. Methods in `post_hoc` correct embeddings and are not
trained.
"""

from deconfound.errors import UserError
from deconfound.methods import post_hoc
from deconfound.methods.contract import Method
from deconfound.methods.contract.discovery import class_of, file_names


def names() -> list[str]:
    """The names of all trained methods, sorted."""
    return file_names(__path__)


def refuse_post_hoc(name: str) -> None:
    """Raise UserError if `name` is a method that corrects embeddings and cannot be trained."""
    if name in post_hoc.names():
        raise UserError(
            f"{name} is a post hoc method: it corrects embeddings of a trained one, with "
            f"`deconfound correct {name} EMBEDDINGS.h5ad`"
        )


def load(name: str) -> type[Method]:
    """The method class of the file `name`.py; raises UserError naming the nearest method."""
    refuse_post_hoc(name)
    return class_of(name, Method, __name__, names(), "method")
