"""The command line: find the verb, call it, and end as what happened asks."""

import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from deconfound.cli.former import FORMER
from deconfound.cli.printing import complain
from deconfound.config import did_you_mean
from deconfound.errors import InputWarning, UserError
from deconfound.runtime import stop
from deconfound.runtime.escaping import for_terminal
from deconfound.verbs import VERBS
from deconfound.version import __version__


def main(words: list[str] | None = None) -> None:
    """Run a verb.

    Exits with 2 and one line on a mistake of the user's; with one line too on SIGTERM and Ctrl-C,
    with 0 where fit or compare has saved its runs and else with 143 and 130. Ends quietly with
    141 where the reader of its output has gone.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        words = _of_today(words)
        with stop.at_once(), _warnings_said():
            _dispatch(words)
            sys.stdout.flush()
    except UserError as error:
        if debug:
            lines = traceback.format_exc().splitlines()
            print(*map(for_terminal, lines), sep="\n", file=sys.stderr)
        complain(str(error))
        sys.exit(2)
    except BrokenPipeError:  # its reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None or debug:
            raise
        reason = f"{os.fsdecode(error.filename)}: {error.strerror}"
        complain(f"{reason}; check the path and its permissions")
        sys.exit(2)
    except KeyboardInterrupt as request:
        verb = VERBS.get(words[0])
        goes_on = verb is not None and verb.resumes
        remedy = "resumes" if goes_on else "starts again, as nothing was written"
        said = str(request) or f"stopped; the same command {remedy}"
        complain(said)
        asked = isinstance(request, stop.Stopped)
        sys.exit(130 if not asked else 0 if verb is not None and verb.saves else 143)


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Within the block every `InputWarning` is one line on stderr, each message once."""
    with warnings.catch_warnings():
        of_others = warnings.showwarning
        said: set[str] = set()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, InputWarning):
                of_others(message, category, filename, lineno, file, line)
            elif str(message) not in said:
                said.add(str(message))
                complain(f"warning: {message}")

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


def _of_today(words: list[str]) -> list[str]:
    """The words of a command; of a former verb what to type instead, which is said."""
    if not words or words[0] not in FORMER:
        return words
    found = FORMER[words[0]](words[1:])
    complain(f"{words[0]} is now {found[0]}; type: deconfound {shlex.join(found)}")
    return found


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("deconfound VERB …   image embeddings that follow the perturbation, not the plate\n")
        for name, verb in VERBS.items():
            print(f"  {name:<{width}}  {verb.summary}")
        print("\ndeconfound VERB --help says more; --debug shows the traceback of an error")
    elif words[0] == "--version":
        print(f"deconfound {__version__}")
    elif words[0] not in VERBS:
        raise UserError(f"unknown verb {words[0]!r}; {did_you_mean(words[0], list(VERBS))}")
    else:
        forms = VERBS[words[0]].forms
        if words[1:2] in (["-h"], ["--help"]) and len(forms) > 1:
            print("\n".join(f"deconfound {form.usage}" for form in forms) + "\n")
        module, _, function = forms[0].call.partition(":")
        getattr(importlib.import_module(f"deconfound.cli.{module}"), function)(words[1:])
