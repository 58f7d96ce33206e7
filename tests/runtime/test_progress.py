"""Progress where stderr is a file, is gone, or is the cell of a notebook."""

import io
import warnings

import pytest

from deconfound.runtime import progress
from deconfound.runtime.progress import Progress


def work() -> None:
    with Progress("fit [bold]", 3, "steps") as bar:
        for _ in range(3):
            bar.update(1, "loss 0.5")


@pytest.mark.parametrize("notebook", [False, True])
def test_a_file_and_a_notebook_without_widgets_get_the_end_and_no_warning(
    notebook: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook rich asks for ipywidgets at each refresh, and shows no bar without them."""
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: notebook)
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    assert "fit [bold]" in shown.getvalue()
    assert "3/3" in shown.getvalue()


def test_a_process_without_stderr_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    work()
