"""Work done by the actors of a Ray cluster, in order, by others where one is lost."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from deconfound.errors import UserError
from deconfound.runtime.reachable import answers

OBJECT_BYTES = 100 * 2**20
"""Memory for results under way, of a cluster that is started here."""
TRIES = 3
"""Workers that an item is given to, one after the other, where they are lost."""
AHEAD = 2
"""Items for each worker that are begun or done before the result of the first is taken."""

Item = TypeVar("Item")
ExecutorName = Literal["local", "ray"]


class Refused(NamedTuple):
    """What a worker answers where it refuses the user's input."""

    reason: str


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster whose machines share the folders that are read and written."""

    workers: int | None = None
    """Actors; as many as there are processors for, if not given."""
    address: str | None = None
    """The cluster's; one is started here and ends with the work, if not given."""

    def in_order(
        self,
        make: Callable[[], Callable[[Item], Any]],
        items: Sequence[Item],
        *,
        threads: int,
        named: Callable[[Item], str],
        keeps: bool = True,
    ) -> Generator[Any, None, None]:
        """The answers of workers, each an actor of `threads` processors that `make` makes, to all
        items in their order.

        A worker that dies is replaced, and another is given its item. Closing the generator kills
        the workers. Raises UserError where Ray is not installed or cannot be reached, with what a
        worker refuses, and, with the item `named`, where three workers were lost over it; that says
        whether what is done is kept, as `keeps` does.
        """
        if not items:
            return
        with connected(self.address) as ray:
            processors = int(ray.cluster_resources().get("CPU", 1))
            count = min(self.workers or max(1, processors // threads), len(items))
            actor = ray.remote(num_cpus=threads, num_gpus=devices(ray, count))(_Worker)
            hands = [actor.remote(make) for _ in range(count)]
            try:
                another = partial(actor.remote, make)
                yield from _answered(ray, hands, another, items, named, keeps)
            finally:
                for hand in hands:
                    ray.kill(hand)


def _answered(
    ray: Any,
    hands: list[Any],
    another: Callable[[], Any],
    items: Sequence[Item],
    named: Callable[[Item], str],
    keeps: bool,
) -> Generator[Any, None, None]:
    """The answers of the workers `hands`, to which one more is added for each that is lost."""
    idle, running = list(hands), {}
    waiting, lost = list(range(len(items)))[::-1], [0] * len(items)
    done: dict[int, Any] = {}
    most, due = AHEAD * len(hands), 0
    while due < len(items):
        while idle and waiting and waiting[-1] < due + most:
            hand, place = idle.pop(), waiting.pop()
            running[hand.do.remote(items[place])] = hand, place
        ready, _ = ray.wait(list(running))
        hand, place = running.pop(ready[0])
        try:
            done[place] = ray.get(ready[0])
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            lost[place] += 1
            if lost[place] == TRIES:
                raise _lost(named(items[place]), error, keeps) from error
            hand = another()
            hands.append(hand)
            waiting.append(place)
            waiting.sort(reverse=True)
        idle.append(hand)
        while due in done:
            answer = done.pop(due)
            if isinstance(answer, Refused):
                raise UserError(answer.reason)
            yield answer
            due += 1


class _Worker:
    """An actor; it is made once, and then does item after item."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._task: Callable[[Any], Any] | None = None

    def do(self, item: Any) -> Any:
        """The answer to an item, or `Refused`."""
        try:
            if self._task is None:
                self._task = self._make()
            return self._task(item)
        except UserError as error:
            return Refused(str(error))


def _lost(what: str, error: Exception, keeps: bool) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    kept, again = ("what is done is kept: ", "goes on") if keeps else ("", "starts again")
    return UserError(
        f"--executor ray: {TRIES} workers were lost over {what} ({reason}); {kept}give the cluster "
        f"machines, or a worker more memory, and the same command {again}"
    )


def devices(ray: Any, actors: int) -> float:
    """The share of a CUDA device for each of `actors`."""
    found = ray.cluster_resources().get("GPU", 0)
    return min(1.0, found / actors) if found else 0.0


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected to the cluster at `address`, or to one that is started here.

    A process that is connected already stays so. Raises UserError if Ray is not installed, or
    cannot start or be reached.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if port.isdecimal() and not answers(host, int(port)):
        raise UserError(
            f"--address {address}: no Ray cluster answers; start one with `ray start --head`, or "
            "leave --address out"
        )
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--executor ray: Ray is not installed; pip install 'deconfound[ray]'"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    own = address is None and "RAY_ADDRESS" not in os.environ
    started = {"object_store_memory": OBJECT_BYTES, "include_dashboard": False} if own else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **started)
    except Exception as error:  # Ray raises bare ones where a node does not start in time
        ray.shutdown()
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--address {address or 'here'}: Ray cannot start or be reached ({reason}); start a "
            "cluster with `ray start --head`"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def cluster_of(executor: ExecutorName, workers: int | None, address: str | None) -> Cluster | None:
    """The cluster that options name, None for this process alone; raises UserError for options of
    a cluster without one."""
    if executor == "ray":
        if workers is not None and workers < 1:
            raise UserError(f"--workers {workers}: expected 1 or more")
        return Cluster(workers, address)
    for option, given in (("--workers", workers), ("--address", address)):
        if given is not None:
            raise UserError(f"{option} {given}: is of a Ray cluster; add --executor ray")
    return None
