"""Results come in order, a few are looked at ahead, and nothing is begun behind an error."""

from __future__ import annotations

import threading
import time

import pytest

from store.parallel import AT_ONCE, in_parallel


def test_results_come_in_order_and_several_are_looked_at_at_once() -> None:
    meeting = threading.Barrier(AT_ONCE, timeout=60)

    def meet(number: int) -> int:
        if number < AT_ONCE:
            meeting.wait()  # which one after the other never would
        time.sleep(0.001 * (number % 3))
        return number

    assert list(in_parallel(meet, range(100))) == list(range(100))


def test_behind_an_error_or_the_last_wish_nothing_is_begun() -> None:
    begun: list[int] = []

    def fail_at_5(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    with pytest.raises(ValueError, match="five"):
        list(in_parallel(fail_at_5, range(10_000)))
    assert len(begun) < 100
    begun.clear()
    results = in_parallel(lambda number: begun.append(number), range(10_000))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 100
