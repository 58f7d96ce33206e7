"""The command line: find the verb, call it, and end as what happened asks."""

import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from deconfound.cli.former import FORMER
from deconfound.errors import UserError, did_you_mean
from deconfound.runtime import bus_error, limits, quiet, stop, streams
from deconfound.runtime.escaping import for_terminal
from deconfound.runtime.streams import complain
from deconfound.verbs import VERBS, Verb
from deconfound.version import __version__

PRINTED = {"--completion": "completion:script", "--schema": "schemas:schema_text"}
"""Flags whose value names a text to print, and what makes it."""


def main(words: list[str] | None = None) -> None:
    """Run a verb.

    Exits with 2 and one line on a mistake of the user's, and where the machine refuses memory, a
    file or stdout; with one line too on SIGTERM and Ctrl-C, with 0 where fit or compare has saved
    its runs and else with 143 and 130. Ends quietly with 141 where the reader of its output has
    gone.
    """
    alone = words is None
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    streams.prepare()
    with _debugging(debug):
        asked = stop.Asked()
        try:
            words = _of_today(words)
            with (
                stop.at_once(last=alone) as asked,
                quiet.own_lines(complain),
                bus_error.explained(),
            ):
                try:
                    _dispatch(words)
                except SystemExit:  # --help ends so, before its lines are out
                    if not streams.refused():
                        raise
                asked.late = True
                lost = streams.refused()
            if lost:
                complain(f"stdout: {lost}; what was to be said there is lost, files are whole")
                sys.exit(2)
        except KeyboardInterrupt as request:
            _stopped(request, VERBS.get(words[0]) if words else None)
        except BrokenPipeError:  # its reader, such as head, has seen enough
            sys.exit(141)
        except Exception as error:
            if asked.by is not None:  # a library has turned the request into this
                _stopped(asked.by(), VERBS.get(words[0]))
            if (line := _line(error)) is None:
                raise
            if debug:
                lines = traceback.format_exc().splitlines()
                print(*map(for_terminal, lines), sep="\n", file=sys.stderr)
            complain(line)
            sys.exit(2)


@contextmanager
def _debugging(debug: bool) -> Iterator[None]:
    """Within the block this process and those that it starts show tracebacks, if `debug`."""
    before = os.environ.pop(quiet.DEBUG, None)
    if debug or before:
        os.environ[quiet.DEBUG] = "1"
    try:
        yield
    finally:
        os.environ.pop(quiet.DEBUG, None)
        if before is not None:
            os.environ[quiet.DEBUG] = before


def _line(error: Exception) -> str | None:
    """What an error says to the user in one line; None for a fault of the program."""
    if (refused := limits.refused(error)) is not None:
        return refused
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        place = os.fsdecode(error.filename)
        return f"{place}: {error.strerror}; check the path and its permissions"
    return None


def _stopped(request: KeyboardInterrupt, verb: Verb | None) -> NoReturn:
    """Say what the same command will do, and end with the code of a signal, or 0 for saved runs."""
    goes_on = verb is not None and verb.resumes
    complain(str(request) or (stop.RESUMES if goes_on else stop.ANEW))
    asked = isinstance(request, stop.Stopped)
    sys.exit(130 if not asked else 0 if verb is not None and verb.saves else 143)


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
        print("\ndeconfound VERB --help says more; --debug shows the traceback of an error;")
        print("--version; --completion SHELL prints a script for bash, zsh or fish; --schema FILE")
        print("prints the JSON schema of a run, a plan or a verdict")
    elif (flag := words[0].partition("="))[0] in PRINTED:
        module, _, function = PRINTED[flag[0]].partition(":")
        made = getattr(importlib.import_module(f"deconfound.cli.{module}"), function)
        print(made(flag[2] or " ".join(words[1:])))
    elif words[0] == "--version":
        print(f"deconfound {__version__}")
    elif words[0] not in VERBS:
        raise UserError(f"unknown verb {words[0]!r}; {did_you_mean(words[0], list(VERBS))}")
    else:
        limits.refuse_few_addresses()
        forms = VERBS[words[0]].forms
        if words[1:2] in (["-h"], ["--help"]) and len(forms) > 1:
            print("\n".join(f"deconfound {form.usage}" for form in forms) + "\n")
        module, _, function = forms[0].call.partition(":")
        getattr(importlib.import_module(f"deconfound.cli.{module}"), function)(words[1:])
