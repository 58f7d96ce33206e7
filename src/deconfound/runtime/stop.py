"""Requests to stop: SIGTERM and Ctrl-C, obeyed at once, or in training at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

GRACE_SECONDS = 7.0
"""How long a request may wait for the end of a step."""


class Stopped(KeyboardInterrupt):
    """A signal ended the work; everything written is whole. The text says what is kept, if any."""


class Abandoned(KeyboardInterrupt):
    """A second request came while the first was answered; the work is left where it stands."""


@contextmanager
def at_once() -> Iterator[None]:
    """SIGTERM raises Stopped, so that what is half-written is removed, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Request:
    """SIGTERM and the first Ctrl-C, noted while the with block lasts, for the block to answer.

    Without an answer for `GRACE_SECONDS` Stopped is raised where the work stands; a second Ctrl-C
    raises KeyboardInterrupt at once. Outside the main thread nothing is noted.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal has come."""
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.answered()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def answered(self) -> None:
        """The request is answered: the work ends by itself and is no longer interrupted."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _stop(_: int, __: FrameType | None) -> None:
    raise Stopped
