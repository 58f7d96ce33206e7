"""The script with which a shell completes verbs, names and options."""

import contextlib
import functools
import importlib
import io
import operator
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, create_model

from deconfound.cli.parsing import asked_model
from deconfound.errors import UserError, did_you_mean
from deconfound.verbs import VERBS, Form

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """What `shell` reads to complete the words of `deconfound`; raises UserError for another."""
    if shell not in SHELLS:
        raise UserError(f"--completion: unknown shell {shell!r}; {did_you_mean(shell, SHELLS)}")
    program = _one_of({name: _arguments(name) for name in VERBS}, lambda name: VERBS[name].summary)
    spoken = io.StringIO()
    with contextlib.redirect_stdout(spoken), contextlib.suppress(SystemExit):
        tyro.cli(
            program,
            args=["--tyro-print-completion", shell],
            prog="deconfound",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return spoken.getvalue().rstrip("\n")


def _arguments(verb: str) -> type[BaseModel]:
    """What follows a verb: the options of all its forms, or the names that come first."""
    forms = VERBS[verb].forms
    if verb in _NAMED:
        return _after(verb, {name: _model(forms[0], [name]) for name in _NAMED[verb]()})
    if verb == "ingest":
        table, source, features = forms
        named = {name: _model(source, [name]) for name in _sources()}
        others = {"source": _after("source", named), "cellprofiler": _model(features)}
        return _after(verb, others, _model(table))
    return _merged(verb, [_model(form) for form in forms])


def _model(form: Form, words: Iterable[str] = ()) -> type[BaseModel]:
    module, _, function = form.call.partition(":")
    call = getattr(importlib.import_module(f"deconfound.cli.{module}"), function)
    return asked_model(call, [*words])


def _merged(verb: str, models: list[type[BaseModel]]) -> type[BaseModel]:
    """A model with the fields of all, those of the first as they are."""
    fields: dict[str, Any] = {}
    for model in models:
        for name, field in model.model_fields.items():
            fields.setdefault(name, (field.rebuild_annotation(), field))
    return create_model(verb, **fields)


def _after(
    name: str, choices: dict[str, type[BaseModel]], own: type[BaseModel] = BaseModel
) -> type[BaseModel]:
    """The arguments `own`, then one of the `choices`."""
    chosen: dict[str, Any] = {"what_follows": (_one_of(choices), ...)}
    return create_model(name, __base__=own, **chosen)


def _one_of(models: dict[str, type[BaseModel]], about: Callable[[str], str] = str) -> Any:
    named = (
        Annotated[model, tyro.conf.subcommand(name, description=about(name), prefix_name=False)]
        for name, model in models.items()
    )
    return functools.reduce(operator.or_, named)


def _methods() -> list[str]:
    from deconfound import methods
    from deconfound.runs.recommended import RECOMMENDED

    return [*methods.names(), RECOMMENDED]


def _corrections() -> list[str]:
    from deconfound.embeddings.correct import names

    return list(names())


def _sources() -> list[str]:
    from deconfound.data import sources

    return list(sources.discover())


_NAMED: dict[str, Callable[[], list[str]]] = {
    "fit": _methods,
    "correct": _corrections,
    "list": lambda: ["methods", "metrics", "sources"],
}
"""The names that a verb begins with."""
