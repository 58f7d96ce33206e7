"""Runs on a Ray cluster whose machines share the folders of the experiment and its screens."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from deconfound.errors import UserError
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.runtime.reachable import answers


def run_ray(
    orders: Sequence[Order], workers: int | None, threads: int, address: str | None
) -> Generator[Outcome, None, None]:
    """Outcomes of all orders as they come, from actors of `threads` processors each.

    `address` is a cluster's ("auto" finds one); without one Ray starts here and ends with the
    experiment. `workers` actors, or as many as there are processors for. Closing the iterator kills
    them: their runs resume from the last checkpoint. Raises UserError if Ray is not installed or
    cannot be reached.
    """
    ray = _connected(address)
    from deconfound.experiments.running.job import Runner

    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        waiting = deque(orders)
        actor = ray.remote(num_cpus=threads, num_gpus=_devices(ray, count))(Runner)
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
    finally:
        ray.shutdown()


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


def _devices(ray: Any, actors: int) -> float:
    """The share of a CUDA device for each of `actors`."""
    devices = ray.cluster_resources().get("GPU", 0)
    return min(1.0, devices / actors) if devices else 0.0


def _connected(address: str | None) -> Any:
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
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--address {address or 'here'}: Ray cannot start or be reached ({reason}); start a "
            "cluster with `ray start --head`"
        ) from error
    return ray
