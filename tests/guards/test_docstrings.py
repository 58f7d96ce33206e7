"""Everything public says what it is; methods, losses and metrics name their paper."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import deconfound
from deconfound import losses, methods
from deconfound.methods import post_hoc
from deconfound.metrics.score import all_metrics

SOURCE = Path(deconfound.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PAPER = re.compile(r"\b(et al\.|(19|20)\d\d)")
Documented = ast.FunctionDef | ast.ClassDef


def public(tree: ast.Module | ast.ClassDef, within: str = "") -> Iterator[tuple[str, Documented]]:
    """Public functions and classes of a module, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield within + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inherited = {"forward", "backward"}
    silent = [
        name
        for name, node in public(tree)
        if not ast.get_docstring(node) and name.rpartition(".")[2] not in inherited
    ]
    assert silent == []
    if file.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree), "a module without a docstring"


def test_the_guard_sees_what_says_nothing() -> None:
    tree = ast.parse("class A:\n    def b(self): ...\n    def _c(self): ...\ndef d(): 'said'\n")
    found = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert found == ["A", "A.b"]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_names_its_paper(name: str) -> None:
    method = methods.load(name)
    assert PAPER.search(method.PAPER)
    assert PAPER.search(inspect.getdoc(method) or "")


@pytest.mark.parametrize("name", post_hoc.names())
def test_every_post_hoc_method_names_its_paper(name: str) -> None:
    method = post_hoc.load(name)
    assert PAPER.search(method.PAPER)
    assert PAPER.search(inspect.getdoc(method) or "")


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_names_its_paper_its_shapes_and_its_errors(name: str) -> None:
    said = inspect.getdoc(getattr(losses, name)) or ""
    assert PAPER.search(said)
    assert "(B" in said or "Arguments" in said
    assert "Raises" in said or "errors" in said


@pytest.mark.parametrize("name", all_metrics())
def test_every_metric_names_its_paper_its_direction_and_its_range(name: str) -> None:
    metric = all_metrics()[name]
    assert PAPER.search(metric.paper) or "," in metric.paper
    assert metric.better in ("higher", "lower", "context")
    assert metric.range[0] < metric.range[1]
    assert metric.summary
    assert "\n" not in metric.summary
