"""Runs in processes of this machine, which stay from run to run."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress

import torch

from deconfound.experiments.running.messages import Order, Outcome
from deconfound.runtime import limits, stop

PATIENCE_SECONDS = stop.GRACE_SECONDS + 5
"""How long a process may take to save its run when the command is stopped."""


def run_local(orders: Sequence[Order], workers: int) -> Generator[Outcome, None, None]:
    """Outcomes of all orders as they come, from `workers` processes.

    A process that ends without an answer fails its run and is replaced. Closing the iterator, or
    an exception such as a signal's, has every process save its run and end.
    """
    waiting = deque(orders)
    with selectors.DefaultSelector() as ready:
        processes = [_Process(number) for number in range(min(workers, len(waiting)))]
        try:
            for process in processes:
                ready.register(process.output, selectors.EVENT_READ, process)
                process.take(waiting.popleft())
            while ready.get_map():
                for key, _ in ready.select():
                    answered: _Process = key.data
                    yield answered.outcome()
                    if waiting and not answered.ended():
                        answered.take(waiting.popleft())
                        continue
                    ready.unregister(answered.output)
                    if waiting:
                        following = _Process(answered.number)
                        processes.append(following)
                        ready.register(following.output, selectors.EVENT_READ, following)
                        following.take(waiting.popleft())
        finally:
            _end(processes)


class _Process:
    """One process and the run it has in hand."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._order: Order | None = None
        self._started = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deconfound.experiments.running.worker", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(number),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the command, which passes it on
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout

    def take(self, order: Order) -> None:
        self._order, self._started = order, time.time()
        with suppress(BrokenPipeError):  # it ended: its output says so
            self._input.write(json.dumps(order) + "\n")
            self._input.flush()

    def outcome(self) -> Outcome:
        """The answer to the order in hand; a failure if the process ended without one."""
        assert self._order is not None
        if line := self.output.readline():
            return Outcome(*json.loads(line))
        code = self._process.wait()
        reason = f"its process {limits.death(code)}"
        return Outcome(self._order.name, self.number, self._started, time.time(), reason=reason)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait for its end; one that takes longer than this is killed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.output.close()
        with suppress(BrokenPipeError):
            self._input.close()


def _end(processes: Sequence[_Process]) -> None:
    """Have every process save and end; one that takes too long is killed.

    Another request to stop kills all at once, and raises Abandoned.
    """
    try:
        for process in processes:
            process.ask_to_end()
        until = time.monotonic() + PATIENCE_SECONDS
        for process in processes:
            process.wait(max(0.0, until - time.monotonic()))
    except KeyboardInterrupt:
        for process in processes:
            process.wait(0)
        raise stop.Abandoned from None


def _environment(number: int) -> dict[str, str]:
    """The environment of a process: where there are several CUDA devices it sees one of them."""
    found = dict(os.environ)
    named = found.get("CUDA_VISIBLE_DEVICES", "")
    visible = named.split(",") if named else list(map(str, range(torch.cuda.device_count())))
    if len(visible) > 1:
        found["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    return found
