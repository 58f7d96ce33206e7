"""Verbs of release 0.1: the words that a command has today. They go with the next release."""

import math
from collections.abc import Callable

from deconfound.errors import UserError

Words = list[str]
SWITCHES = {"--quiet", "--no-quiet", "--help", "--embeddings"}


SEVERAL = {"--levels", "--seeds", "--environment", "--folds", "--learning-rates", "--lengths"}
SEVERAL |= {"--alphas"}
"""Flags of former verbs that take all words up to the next flag."""


def _parted(words: Words) -> tuple[Words, Words]:
    """The words that name something, wherever they stand, and the flags with their values."""
    named: Words = []
    flags: Words = []
    awaited = 0.0
    for word in words:
        if word.startswith("--"):
            awaited = math.inf if word in SEVERAL else 0 if word in SWITCHES or "=" in word else 1
            flags.append(word)
        elif awaited:
            awaited -= 1
            flags.append(word)
        else:
            named.append(word)
    return named, flags


def _renamed(words: Words, old: str, new: str) -> Words:
    """The words with one flag under its new name."""
    return [new + word[len(old) :] if word == old or word.startswith(f"{old}=") else word
            for word in words]  # fmt: skip


def _crossval(words: Words) -> Words:
    named, flags = _parted(words)
    if not named and not {"-h", "--help"} & set(flags):
        raise UserError("crossval: name one method or more, then the screen")
    methods = ["--methods", *named[:-1]] if len(named) > 1 else []
    flags = _renamed(flags, "--levels", "--hold-out")
    return ["compare", *named[-1:], "--view", "levels", *flags, *methods]


def _diagnose(words: Words) -> Words:
    named, flags = _parted(words)
    flags = _renamed(flags, "--folds", "--hold-out")
    recipes: Words = []
    for name in ("erm", "scbd"):
        for place in [n for n, word in enumerate(flags) if word == f"--{name}"][::-1]:
            flags[place : place + 2] = [f"--{name}={flags[place + 1]}"]
        recipes += [word[2:] for word in flags if word.startswith(f"--{name}=")]
        flags = [word for word in flags if not word.startswith(f"--{name}=")]
    methods = ["--methods", *recipes] if recipes else []
    return ["compare", *named, "--view", "trade-off", *flags, *methods]


def _demo(words: Words) -> Words:
    out = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out", "demo"]
    return ["compare", "demo", *out, *words]


def _inject(words: Words) -> Words:
    named, flags = _parted(words)
    return ["simulate", *([f"--cells={named[0]}"] if named else []), *named[1:], *flags]


FORMER: dict[str, Callable[[Words], Words]] = {
    "sweep": lambda words: ["compare", *words],
    "crossval": _crossval,
    "diagnose": _diagnose,
    "demo": _demo,
    "source": lambda words: ["ingest", "source", *words],
    "cellprofiler": lambda words: ["ingest", "cellprofiler", *words],
    "inject": _inject,
    "profiles": lambda words: ["embed", *words],
    "relations": lambda words: ["measure", *words],
    "retrieval": lambda words: ["measure", *words, "--retrieval"],
    "imputation": lambda words: ["measure", *words],
    "methods": lambda words: ["list", "methods", *words],
    "metrics": lambda words: ["list", "metrics", *words],
    "sources": lambda words: ["list", "sources", *words],
}
"""From the words after a former verb to the words of today."""
