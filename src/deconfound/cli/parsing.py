"""Words of the command line to typed arguments; every mistake becomes one line."""

import contextlib
import difflib
import io
import itertools
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar, get_args

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from deconfound.config import AUGMENTATIONS, Options, did_you_mean, nearest
from deconfound.errors import UserError
from deconfound.runtime.escaping import one_line

Parsed = TypeVar("Parsed", bound=BaseModel)
SYNONYMS = {"--hold-out": "--fold"}
"""Flags that mean the same in every verb, and the option of a run that they set."""


class _Asked(Exception):
    """Carries the model that a verb would parse its words with."""


_asking: ContextVar[bool] = ContextVar("asking", default=False)


def asked_model(call: Callable[[list[str]], None], words: list[str]) -> type[BaseModel]:
    """The model of arguments that the function of a verb parses `words` with; it does no more."""
    token = _asking.set(True)
    try:
        call(words)
    except _Asked as found:
        model: type[BaseModel] = found.args[0]
        return model
    finally:
        _asking.reset(token)
    raise TypeError(f"{call.__name__} parses nothing")


def name_first(words: list[str], verb: str, what: str, known: list[str]) -> str:
    """The name that follows a verb, before its flags."""
    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            print(f"deconfound {verb} NAME …   NAME is one of {', '.join(known)}")
            sys.exit(0)
        raise UserError(f"{verb}: name a {what} first; there are {', '.join(known)}")
    if words[0] not in known:
        raise UserError(f"unknown {what} {words[0]!r}; {did_you_mean(words[0], known)}")
    return words[0]


def take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """`words` without `option` and its value, and the value."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return words[:place] + words[place + 1 :], word.partition("=")[2]
        if word == option:
            if place + 1 == len(words):
                raise UserError(f"{option} needs a value")
            return words[:place] + words[place + 2 :], words[place + 1]
    return words, None


def _of_model(words: list[str], flags: list[str]) -> list[str]:
    """The words, with each synonym that the model does not know under the flag's own name.

    Several names after --augment become one word, so that what follows may be a path.
    """
    named = {old: new for old, new in SYNONYMS.items() if new in flags and old not in flags}
    parts = [word.partition("=") for word in words]
    words = [named.get(name, name) + equals + value for name, equals, value in parts]
    if "--augment" in words:
        first = words.index("--augment") + 1
        more = itertools.takewhile(_names_augmentation, words[first + 1 :])
        names = [*words[first : first + 1], *more]
        words[first : first + len(names)] = [" ".join(names)] if names else []
    return words


def _names_augmentation(word: str) -> bool:
    """Whether a word is one of `AUGMENTATIONS`, or misspells one."""
    return word in AUGMENTATIONS or not (
        word.startswith("-") or nearest(word, AUGMENTATIONS) is None or Path(word).exists()
    )


def parse(model: type[Parsed], words: list[str], verb: str, about: str = "") -> Parsed:
    """The arguments of a verb; every mistake becomes one line."""
    if _asking.get():
        raise _Asked(model)
    spoken = io.StringIO()
    flags = _flags(model)
    try:
        with contextlib.redirect_stderr(spoken):
            parsed, unknown = tyro.cli(
                model,
                args=_gathered(_of_model(words, list(flags)), flags),
                prog=f"deconfound {verb}",
                description=about or model.__doc__,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][-1]).replace("_", "-")
        raise UserError(f"{verb}: {option} {problem['input']!r}: {problem['msg']}") from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{verb}: {_tyro_message(spoken.getvalue())}") from None
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(flags), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"see deconfound {verb} --help"
        raise UserError(f"{verb}: unknown option {unknown[0]!r}; {hint}")
    return parsed


def _flags(model: type[BaseModel]) -> dict[str, bool]:
    """Every flag a model of arguments gives rise to, and whether it takes any number of values."""
    found: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            found |= _flags(kind)
        else:
            of_union = (kind, *get_args(kind))
            found[flag_of(name, field)] = any(... in get_args(one) for one in of_union)
    return found


def flag_of(name: str, field: FieldInfo) -> str:
    """The flag of a field: its own name, or the one that is given for the command line."""
    given = [getattr(one, "name", None) for one in field.metadata]
    return "--" + next((one for one in given if one), name).replace("_", "-")


def _gathered(words: list[str], flags: dict[str, bool]) -> list[str]:
    """The words, with all values of a repeated flag behind one, at the end: none is lost.

    "--join A --join B" is "--join A B". A flag that takes one value keeps the last.
    """
    given = [word.partition("=")[0] for word in words]
    twice = {flag for flag, several in flags.items() if several and given.count(flag) > 1}
    others: list[str] = []
    values: dict[str, list[str]] = {flag: [] for flag in given if flag in twice}
    taking = others
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in twice:
            taking = others if equals else values[flag]
            values[flag] += [value] if equals else []
        else:
            taking = others if word.startswith("--") else taking
            taking.append(word)
    return [*others, *(word for flag, found in values.items() for word in (flag, *found))]


def _tyro_message(text: str) -> str:
    """What an argument error says, without its box and its usage."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    inside = [line.strip("│ ").strip() for line in text.splitlines() if line.startswith("│")]
    if not inside:  # a terminal of ASCII: a title, a line of dashes, and no sides
        text = re.sub(r"^[^\n]*\n\s*-{10,}\s*\n", "", text)
        inside = [line.strip() for line in text.splitlines()]
    kept = [line for line in inside if line and not set(line) <= set("─-")]
    said = " ".join(kept) or one_line(text)
    said = re.sub(
        r".*1 validation errors? for \w+ (\w+) (.*?) \[type=.*",
        lambda found: f"--{found[1].replace('_', '-')}: {found[2]}",
        said,
    )
    return re.split(r" Argument helptext:| For full helptext| For further information", said)[0]
