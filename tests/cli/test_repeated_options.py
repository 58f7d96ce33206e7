"""An option of several values may be given again: no value is lost."""

from typing import Literal

import pytest

from deconfound.cli.arguments import Arguments
from deconfound.cli.parsing import parse


class _Words(Arguments):
    """Words."""

    table: str = ""
    """A table."""
    join: tuple[str, ...] = ()
    """Tables."""
    levels: tuple[Literal["a", "b"], ...] | None = None
    """Levels."""
    seed: int = 0
    """A seed."""


@pytest.mark.parametrize(
    "words",
    ["--join x --join y", "--join=x --join=y", "--join x --seed 3 --join=y", "--join x y"],
)
def test_values_of_a_repeated_option_are_all_taken(words: str) -> None:
    assert parse(_Words, words.split(), "w").join == ("x", "y")


def test_the_words_between_keep_their_meaning() -> None:
    words = "--levels a --join x z --seed 1 --levels=b --table t --join y --seed 2"
    found = parse(_Words, words.split(), "w")
    assert (found.levels, found.join) == (("a", "b"), ("x", "z", "y"))
    assert (found.table, found.seed) == ("t", 2)
