"""Work done in threads ahead of its use: in order, few items ahead, errors where they are due."""

import threading
import time
from collections.abc import Iterator

import pytest

from deconfound.runtime.prefetch import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def late(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(in_order(late, range(20), 4)) == [item * item for item in range(20)]


@pytest.mark.parametrize(("threads", "ahead", "most"), [(1, None, 2), (3, None, 6), (1, 3, 3)])
def test_few_items_are_begun_ahead(threads: int, ahead: int | None, most: int) -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            asked.append(item)
            yield item

    results = in_order(abs, items(), threads, ahead=ahead)
    assert next(results) == 0
    assert len(asked) == 1 + most
    results.close()


def test_an_error_is_raised_when_its_result_is_due_and_ends_the_threads() -> None:
    results = in_order(lambda item: 6 // item, [1, 2, 0, 3], 2, name="divides")
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [one for one in threading.enumerate() if one.name.startswith("divides")]
