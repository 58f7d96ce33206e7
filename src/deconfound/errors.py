"""The one exception that means: the user's input is wrong, and here is the remedy."""


class UserError(Exception):
    """A mistake in a table, file, column or option.

    The message is one line: what was found where, what was expected, what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """
