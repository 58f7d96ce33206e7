"""What is said of the user's input: an error that refuses it, a warning that takes it, a hint."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in a table, file, column or option.

    The message is one line: what was found where, what was expected, what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """


class InputWarning(UserWarning):
    """Something about a table, file or option that the user should know, and that is no mistake.

    The message is one line: what was found where, what was done about it, how to have it otherwise.
    Raised with `warnings.warn(message, InputWarning, stacklevel=2)`; the command line prints it as
    one line on stderr, each message once.
    """


def did_you_mean(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """A hint for a misspelt name: the nearest name, else `otherwise`, by default all names."""
    near = nearest(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"expected one of {', '.join(known)}" if otherwise is None else otherwise


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that a misspelt name resembles, if any does."""
    import difflib  # takes time, and few names are misspelt

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)
