"""Requests to stop: SIGTERM and Ctrl-C, obeyed at once, or in training at the end of a step."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Self

GRACE_SECONDS = 7.0
"""How long a request may wait for the end of a step."""
AGAIN_SECONDS = 0.1
"""How soon a request is raised again that a library has dropped."""


RESUMES = "stopped; the same command resumes"
ANEW = "stopped; the same command starts again, as nothing was written"


class Stopped(KeyboardInterrupt):
    """A signal ended the work; everything written is whole. The text says what is kept, if any."""


class Abandoned(KeyboardInterrupt):
    """A second request came while the first was answered; the work is left where it stands."""


@dataclass
class Asked:
    """Whether a signal has come that ends the work."""

    by: type[KeyboardInterrupt] | None = None
    """What it raises: Stopped for SIGTERM, KeyboardInterrupt for Ctrl-C; None before one came."""
    late: bool = False
    """Set when the work is done: what comes from then on is not heard."""


@contextmanager
def told(text: str) -> Iterator[None]:
    """A request that ends the block, and has no text, gets this one."""
    try:
        yield
    except KeyboardInterrupt as request:
        if request.args:
            raise
        raise type(request)(text) from request


@contextmanager
def at_once(last: bool = False) -> Iterator[Asked]:
    """SIGTERM raises Stopped as Ctrl-C raises KeyboardInterrupt, so that what is half-written goes.

    Libraries, above all while they are imported, drop either exception: until the block is left it
    is raised again. Some turn it into an error of their own: the block's value tells. A Ctrl-C
    that the process was started to ignore stays ignored. If it is the `last` thing that the process
    does, requests that come when the work is done are ignored until the process has ended.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, _: FrameType | None) -> None:
        if asked.late:
            return
        if number == signal.SIGALRM and (asked.by is None or _in_flight()):
            return
        if asked.by is None:
            asked.by = KeyboardInterrupt if number == signal.SIGINT else Stopped
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        raise asked.by

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    numbers = [signal.SIGTERM, signal.SIGALRM] + ([] if ignored else [signal.SIGINT])
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if last and asked.late else handler)


def _in_flight() -> bool:
    """Whether the exception of a request is on its way, through the blocks that clean up."""
    one = sys.exc_info()[1]
    while one is not None and not isinstance(one, KeyboardInterrupt):
        one = one.__context__
    return one is not None


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
