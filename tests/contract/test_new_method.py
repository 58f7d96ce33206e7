"""Adding a method is adding one file."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deconfound import cli, methods
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.file import PREDICTED, read_embeddings
from deconfound.errors import UserError

FOO = '''
"""foo: one convolution and a head."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Loss, Method, MethodOptions, Phase, Stage, Task, Tensors


class FooOptions(MethodOptions):
    """Options of foo."""

    filters: int = Field(4, ge=1)
    """Filters of the convolution, said in a way no other option says it."""


class Foo(Method):
    """One convolution."""

    Options: ClassVar[type[MethodOptions]] = FooOptions
    options: FooOptions
    SUMMARY = "one convolution, by a file alone"
    PAPER = "Nobody, Nowhere, 2000"

    def __init__(self, options: FooOptions, task: Task) -> None:
        super().__init__(options, task)
        self.convolution = nn.Conv2d(task.channels, options.filters, 3)
        self.head = nn.Linear(options.filters, task.labels)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        phase = Phase(
            "all", list(self.parameters()), self._losses, self.options.learning_rate,
            self.options.weight_decay, validates=True,
        )
        return (Stage("only", steps, (phase,)),)

    def embed(self, image: Tensor) -> Tensors:
        return {"representation": self.convolution(image).relu().mean(dim=(2, 3))}

    def predict(self, embedded: Tensors) -> Tensor:
        return self.head(embedded["representation"])

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        return {"cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label))}
'''


@pytest.fixture
def foo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of methods with one file more."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "foo.py").write_text(FOO)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    yield folder / "foo.py"
    sys.modules.pop("deconfound.methods.foo", None)


def stops(words: list[str]) -> int | str | None:
    try:
        cli.main(words)
    except SystemExit as stop:
        return stop.code
    return None


@pytest.mark.usefixtures("foo")
def test_a_file_is_a_method(
    screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "foo" in methods.names()
    assert stops(["list", "methods"]) is None
    assert "foo" in capsys.readouterr().out
    assert stops(["fit", "foo", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--filters" in printed
    assert "Nobody, Nowhere, 2000" in printed
    run, out = tmp_path / "run", tmp_path / "e.h5ad"
    few = "--steps 2 --batch-size 16 --device cpu --precision 32 --threads 1 --quiet"
    fit = ["fit", "foo", str(screen.path), "--out", str(run), "--fold", "plate=S1/P1"]
    assert stops([*fit, *few.split(), "--filters", "6"]) is None
    embed = ["embed", str(run), str(screen.path), "--out", str(out)]
    assert stops([*embed, "--device", "cpu", "--threads", "1", "--quiet"]) is None
    found = read_embeddings(out)
    assert found.about["method"] == "foo"
    assert found.about["config"]["options"]["filters"] == 6
    assert found.representations["representation"].shape == (len(screen), 6)
    assert found.table[PREDICTED].notna().all()


def test_a_file_without_a_method_is_named(foo: Path) -> None:
    (foo.parent / "empty.py").write_text('"""Nothing."""\n')
    with pytest.raises(UserError, match=r"empty\.py: holds 0 Method classes; expected one"):
        methods.load("empty")
    sys.modules.pop("deconfound.methods.empty", None)
