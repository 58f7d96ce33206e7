"""Rows of a table in words: METHOD[+IMPUTER][+CORRECTION][+knn][=CONFIG.yaml]."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deconfound import methods
from deconfound.config import did_you_mean, validated
from deconfound.embeddings.correct import KNN
from deconfound.errors import UserError
from deconfound.experiments.running.chain import Chain
from deconfound.intervention.source_run import imputing_methods
from deconfound.methods import post_hoc
from deconfound.runs.config import read_config
from deconfound.runs.recommended import RECOMMENDED


def read_rows(words: Sequence[str], knn: int = 10) -> tuple[list[Chain], dict[str, dict[str, Any]]]:
    """The chains that METHOD[+IMPUTER][+CORRECTION][+knn][=CONFIG.yaml] name, and their entries.

    An imputer is a method that imputes, or the name of another word: the method is trained on what
    the imputer imputes on the same fold and seed (erm+ist is the IST of Pernice et al.). The method
    recommended is the recipe that `recommend` gives for the screen. Entries
    are those of a plan file, by name; entries of imputers are among them. `knn` training rows vote
    where a word ends in +knn. Raises UserError for an unknown method, imputer or correction,
    corrections in another order, a correction whose extra is not installed, and two configurations
    of one name.
    """
    if not words:
        raise UserError("compare: name one method or more with --methods")
    named = [word.partition("=")[0].split("+")[0] for word in words]
    chains: dict[str, Chain] = {}
    configs: dict[str, Path | None] = {}
    for word in words:
        name, _, file = word.partition("=")
        entry, steps = _entry_and_steps(name, named)
        chain = _chain(name, entry, steps, knn)
        chains[chain.name] = chain
        config = Path(file).resolve() if file else None
        if config is not None and configs.get(entry) not in (None, config):
            raise UserError(f"compare: {entry} has two configurations; give one of them a name")
        configs[entry] = config or configs.get(entry)
    for entry in list(configs):
        for part in entry.split("+"):
            configs.setdefault(part, None)
    wanted = {part for chain in chains.values() for part in _needed(chain.entry)}
    entries = {name: _entry(name, configs) for name in configs if name in wanted}
    return list(chains.values()), entries


def read_chain(
    word: str, entries: Collection[str], knn: int, corrections: Mapping[str, dict[str, Any]]
) -> Chain:
    """The chain ENTRY[+CORRECTION][+knn] of a plan file; `corrections` has their options by name.

    Raises UserError for an unknown entry or correction, corrections in another order, an option
    that the correction does not have, and a correction whose extra is not installed.
    """
    fitting = [name for name in entries if word == name or word.startswith(f"{name}+")]
    if not fitting:
        first = word.split("+")[0]
        raise UserError(
            f"chain {word}: unknown entry {first!r}; {did_you_mean(first, list(entries))}"
        )
    entry = max(fitting, key=len)
    steps = word[len(entry) + 1 :].split("+") if word != entry else []
    for step in steps:
        if step not in (known := [*post_hoc.names(), KNN]):
            raise UserError(f"chain {word}: {step!r} corrects nothing; {did_you_mean(step, known)}")
    options = corrections.get(steps[0], {}) if steps else {}
    if options:
        where = f"corrections.{steps[0]}"
        validated(post_hoc.load(steps[0]).Options, options, where)
    return _chain(word, entry, steps, knn, options)


def _entry_and_steps(word: str, named: list[str]) -> tuple[str, list[str]]:
    """The entry METHOD[+IMPUTER] of a word, and what follows it."""
    first, *rest = word.split("+")
    corrections = [*post_hoc.names(), KNN]
    imputers = {*imputing_methods(), *named}
    for step in rest:
        if step not in corrections and step not in imputers:
            known = [*imputing_methods(), *corrections]
            hint = did_you_mean(step, known)
            raise UserError(f"compare: {word}: {step!r} neither imputes nor corrects; {hint}")
    if rest and rest[0] in imputers:
        return f"{first}+{rest[0]}", rest[1:]
    return first, rest


def _chain(
    word: str, entry: str, steps: list[str], knn: int, options: dict[str, Any] | None = None
) -> Chain:
    corrected = [step for step in steps if step in post_hoc.names()]
    votes = KNN in steps
    if len(corrected) > 1 or steps != [*corrected, *[KNN] * votes]:
        raise UserError(
            f"compare: {word}: expected METHOD, one imputer at most, one correction at most, "
            "then knn"
        )
    titles, correction = [entry], None
    if corrected:
        correction = corrected[0]
        loaded = post_hoc.load(correction)
        loaded.require()
        titles.append(loaded.title(correction))
    name = "+".join([*titles, *[KNN] * votes])
    return Chain(name, entry, correction, knn if votes else None, options or {})


def _needed(entry: str) -> list[str]:
    """The entry, and that of its imputer."""
    return [entry, *entry.split("+")[1:]]


def _entry(name: str, configs: dict[str, Path | None]) -> dict[str, Any]:
    """The plan's entry of a name; with an imputer it is configured by itself or as its method."""
    first, _, imputer = name.partition("+")
    config = configs[name] or configs[first]
    found: dict[str, Any] = {}
    if config is not None:
        method = read_config(config, first if first in methods.names() else None).method
        found = {"method": method, "config": str(config)}
    else:
        methods.refuse_post_hoc(first)
        if first not in (known := [*methods.names(), RECOMMENDED]):
            raise UserError(f"compare: unknown method {first!r}; {did_you_mean(first, known)}")
        if imputer:
            found = {"method": first}
    return found | ({"intervene": imputer} if imputer else {})
