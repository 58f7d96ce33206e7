"""Runs on a Ray cluster whose machines share the folders of the experiment and its screens."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from deconfound.experiments.running.messages import Order, Outcome
from deconfound.runtime.cluster import connected, devices


def run_ray(
    orders: Sequence[Order], workers: int | None, threads: int, address: str | None
) -> Generator[Outcome, None, None]:
    """Outcomes of all orders as they come, from actors of `threads` processors each.

    `address` is a cluster's ("auto" finds one); without one Ray starts here and ends with the
    experiment. `workers` actors, or as many as there are processors for. Closing the iterator kills
    them: their runs resume from the last checkpoint. Raises UserError if Ray is not installed or
    cannot be reached.
    """
    with connected(address) as ray:
        from deconfound.experiments.running.job import Runner

        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        waiting = deque(orders)
        actor = ray.remote(num_cpus=threads, num_gpus=devices(ray, count))(Runner)
        in_hand: dict[Any, tuple[Any, int, Order]] = {}
        for number in range(min(count, len(waiting))):
            _give(in_hand, actor.remote(number), number, waiting.popleft())
        while in_hand:
            done, _ = ray.wait(list(in_hand))
            runner, number, order = in_hand.pop(done[0])
            outcome, alive = _outcome(ray, done[0], number, order)
            if waiting:
                following = runner if alive else actor.remote(number)
                _give(in_hand, following, number, waiting.popleft())
            yield outcome


def _give(
    in_hand: dict[Any, tuple[Any, int, Order]], runner: Any, number: int, order: Order
) -> None:
    in_hand[runner.run.remote(order)] = (runner, number, order)


def _outcome(ray: Any, answer: Any, number: int, order: Order) -> tuple[Outcome, bool]:
    """The answer of an actor, and whether the actor still lives."""
    try:
        outcome: Outcome = ray.get(answer)
        return outcome, True
    except ray.exceptions.RayError as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Outcome(order.name, number, time.time(), time.time(), reason=reason), False
