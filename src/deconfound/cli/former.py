"""Verbs of release 0.1: the words that a command has today. They go with the next release."""

from collections.abc import Callable

from deconfound.errors import UserError

Words = list[str]


def _leading(words: Words) -> tuple[Words, Words]:
    """The words before the first flag, and the others."""
    count = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:count], words[count:]


def _renamed(words: Words, old: str, new: str) -> Words:
    """The words with one flag under its new name."""
    return [new + word[len(old) :] if word == old or word.startswith(f"{old}=") else word
            for word in words]  # fmt: skip


def _crossval(words: Words) -> Words:
    named, flags = _leading(words)
    if not named and not {"-h", "--help"} & set(flags):
        raise UserError("crossval: name one method or more, then the screen")
    methods = ["--methods", *named[:-1]] if len(named) > 1 else []
    return ["compare", *named[-1:], *_renamed(flags, "--levels", "--hold-out"), *methods]


def _diagnose(words: Words) -> Words:
    named, flags = _leading(words)
    flags = _renamed(flags, "--folds", "--hold-out")
    recipes = []
    for name in ("erm", "scbd"):
        while f"--{name}" in flags:
            place = flags.index(f"--{name}")
            recipes += [f"{name}={file}" for file in flags[place + 1 : place + 2]]
            del flags[place : place + 2]
    methods = ["--methods", *recipes] if recipes else []
    return ["compare", *named, "--view", "trade-off", *flags, *methods]


def _demo(words: Words) -> Words:
    out = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out", "demo"]
    return ["compare", "demo", *out, *words]


FORMER: dict[str, Callable[[Words], Words]] = {
    "sweep": lambda words: ["compare", *words],
    "crossval": _crossval,
    "diagnose": _diagnose,
    "demo": _demo,
    "source": lambda words: ["ingest", "source", *words],
    "cellprofiler": lambda words: ["ingest", "cellprofiler", *words],
    "inject": lambda words: ["simulate", "--cells", *words],
    "profiles": lambda words: ["embed", *words],
    "relations": lambda words: ["measure", *words],
    "retrieval": lambda words: ["measure", *words, "--retrieval"],
    "imputation": lambda words: ["measure", *words],
    "methods": lambda words: ["list", "methods", *words],
    "metrics": lambda words: ["list", "metrics", *words],
    "sources": lambda words: ["list", "sources", *words],
}
"""From the words after a former verb to the words of today."""
