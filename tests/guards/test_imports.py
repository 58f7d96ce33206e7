"""A module imports only from rooms to the left of its own."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import deconfound

SOURCE = Path(deconfound.__file__).parent
FOUNDATION = ("errors", "escaping", "streams", "atomic", "lock", "stop", "config", "progress")
ROOMS = ("foundation", "data", "nets", "losses", "methods", "metrics", "verbs", "cli")
FILES = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


def room_of(module: str) -> str:
    """The room of a module, named with or without "deconfound."."""
    first = module.removeprefix("deconfound.").split(".")[0]
    if first == "__main__" or first.startswith("cli_"):
        return "cli"
    if first in FOUNDATION:
        return "foundation"
    return first if first in ROOMS else "verbs"


def imported(text: str) -> Iterator[str]:
    """Every module of the package that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("deconfound."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "deconfound":
                yield from (f"deconfound.{name.name}" for name in node.names)
            elif node.module and node.module.startswith("deconfound."):
                yield node.module


def from_the_right(module: str, text: str) -> list[str]:
    own = ROOMS.index(room_of(module))
    found = [name for name in imported(text) if not name.startswith("deconfound.__")]
    return [name for name in found if ROOMS.index(room_of(name)) > own]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_module_imports_from_the_right(file: Path) -> None:
    module = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    assert from_the_right(module, file.read_text(encoding="utf-8")) == []


def test_the_guard_sees_an_import_from_the_right() -> None:
    text = "from deconfound import metrics\ndef f():\n    from deconfound.fit import fit\n"
    assert from_the_right("losses.contrastive", text) == ["deconfound.metrics", "deconfound.fit"]
    assert from_the_right("metrics.probe", text) == ["deconfound.fit"]
    assert from_the_right("cli", text) == []
    assert from_the_right("fit", "import deconfound.cli_print") == ["deconfound.cli_print"]
    assert from_the_right("errors", "import deconfound.data.screen") == ["deconfound.data.screen"]


def test_every_room_is_there() -> None:
    rooms = {room_of(".".join(file.relative_to(SOURCE).with_suffix("").parts)) for file in FILES}
    assert rooms == set(ROOMS)


def test_every_module_can_be_imported() -> None:
    """No extra is needed, and the network is closed in all tests."""
    for module in pkgutil.walk_packages([str(SOURCE)], "deconfound."):
        if "triton" not in module.name:
            importlib.import_module(module.name)
