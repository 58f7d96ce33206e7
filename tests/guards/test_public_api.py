"""The names of `deconfound` itself; what they take and return is in public_api.txt, beside this.

A change of the public interface shows there: `python tests/guards/test_public_api.py` prints it.
"""

import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

import deconfound
from deconfound.estimator import rows

RECORDED = Path(__file__).with_name("public_api.txt")
WITH_METHODS = ("Deconfounder",)
"""Classes that are made, and whose methods are called, by name."""
MODULES = re.compile(r"\b(?:[a-z_][a-z_0-9]*\.)+(?=[A-Za-z_])")
"""The packages before a type's name."""


def written(name: str) -> str:
    """The signature of a public function, a parameter a line; * marks those given by name."""
    value = getattr(deconfound, name)
    if not inspect.isclass(value):
        return signed(name, value)
    methods = {of: getattr(value, of) for of in vars(value) if of[0] != "_"}
    taken = [signed(name, value)] if name in WITH_METHODS else [f"class {name}\n"]
    for of, method in methods.items() if name in WITH_METHODS else ():
        taken.append(
            signed(f"{name}.{of}", method.fget if isinstance(method, property) else method)
        )
    return "".join(taken)


def signed(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    lines = [name]
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        named = "*" if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) else " "
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"  {named} {parameter.name}: {type_name(parameter.annotation)}{default}")
    lines.append(f"    -> {type_name(signature.return_annotation)}")
    return "\n".join(lines) + "\n"


def type_name(annotation: object) -> str:
    if isinstance(annotation, str):
        return MODULES.sub("", annotation)
    if typing.get_origin(annotation) is typing.Unpack:
        named = typing.get_type_hints(typing.get_args(annotation)[0])
        return ", ".join(f"{name}: {type_name(hint)}" for name, hint in named.items())
    return MODULES.sub("", inspect.formatannotation(annotation))


def test_signatures_are_as_recorded() -> None:
    assert "".join(map(written, deconfound.__all__)) == RECORDED.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", deconfound.__all__)
def test_public_names_are_documented_and_typed(name: str) -> None:
    value = getattr(deconfound, name)
    assert inspect.isfunction(value) or inspect.isclass(value)
    assert inspect.getdoc(value)
    named = {**vars(rows), "AnnData": AnnData}  # which is imported for its type alone
    typed = value.__init__ if inspect.isclass(value) else value
    hints = typing.get_type_hints(typed, localns=named)
    parameters = set(inspect.signature(value).parameters)
    assert hints.keys() >= parameters | {"return"}


@pytest.mark.parametrize("name", deconfound.__all__)
def test_a_public_name_stays_itself_after_its_module_is_imported(name: str) -> None:
    value = getattr(deconfound, name)
    module = importlib.import_module(value.__module__)
    assert getattr(deconfound, name) is getattr(module, name) is value


@pytest.mark.parametrize("name", WITH_METHODS)
def test_methods_are_documented_and_typed(name: str) -> None:
    for of, method in inspect.getmembers(getattr(deconfound, name)):
        function = method.fget if isinstance(method, property) else method
        if of[0] == "_" or not inspect.isroutine(function):
            continue
        assert inspect.getdoc(function), of
        signature = inspect.signature(function)
        annotations = [one.annotation for one in list(signature.parameters.values())]
        taken = [one for one in signature.parameters if one != "self"]
        assert len([one for one in annotations if one is not signature.empty]) == len(taken), of
        assert signature.return_annotation is not signature.empty, of


def test_names_are_listed_once_and_unknown_ones_are_refused() -> None:
    assert len(set(deconfound.__all__)) == len(deconfound.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        deconfound.no_such_name  # noqa: B018


if __name__ == "__main__":
    print("".join(map(written, deconfound.__all__)), end="")
