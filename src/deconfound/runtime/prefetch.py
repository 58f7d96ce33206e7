"""Doing work in threads a few items before its results are needed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    ahead: int | None = None,
    name: str = "",
) -> Generator[Result, None, None]:
    """`task` of every item, in the order of `items`, in threads called `name`.

    While a result is in use, at most the `ahead` items after it are begun or done, by default two
    for each thread. An error of a task is raised when its result is due. Close the generator to end
    the threads early.
    """
    most = 2 * threads if ahead is None else ahead
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, name)
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
