"""Progress of long work on the terminal or in a notebook: rate and time left."""

from importlib.util import find_spec
from typing import Any, Self

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from deconfound.runtime.escaping import for_terminal


class Progress:
    """One bar with a count, a rate and the time left; silent if `quiet`."""

    def __init__(
        self, name: str, total: int | None, unit: str, done: int = 0, quiet: bool = False
    ) -> None:
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
            console=_console(),
            disable=quiet,
            refresh_per_second=4,
        )
        self._unit = unit
        self._task = self._bar.add_task(_shown(name), total=total, completed=done, rate="", note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, advance: int, note: str | None = None) -> None:
        """Advance by a number of units; `note` replaces the text at the end."""
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed:,.1f} {self._unit}/s" if speed else ""
        noted: dict[str, Any] = {} if note is None else {"note": _shown(note)}
        self._bar.update(self._task, advance=advance, rate=rate, **noted)


def _console() -> Console:
    """stderr, or the cell of a notebook; without ipywidgets that would show warnings and no bar."""
    console = Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(stderr=True, force_jupyter=False)
    return console


def _shown(text: str) -> str:
    return escape(for_terminal(text))
