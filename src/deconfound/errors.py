"""What is said of the user's input: the error that refuses it, the warning that takes it."""


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
