"""Which blocks of a file of embeddings are read: the others need no memory."""

from collections.abc import Callable

Blocks = Callable[[list[str]], list[str]]
"""Of the names of the blocks of a file, those to read."""


def every_block(names: list[str]) -> list[str]:
    """All of them."""
    return names


def no_block(names: list[str]) -> list[str]:  # noqa: ARG001
    """None: the table alone."""
    return []


def one_block(name: str) -> Blocks:
    """`name`; all where a file has none of that name, so that an error can list them."""
    return lambda names: [name] if name in names else names
