"""Many small reads at once, since walking a store mostly means waiting for a disk or a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of ``work`` in the order of the items, computed a few items ahead.

    After an error, or when the caller stops iterating, no further item is started.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for future in lookahead((pool.submit(work, item) for item in items), 2 * AT_ONCE):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def lookahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The items in order, ``count`` more of which have been drawn than the caller has been given."""
    drawn: deque[T] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > count:
            yield drawn.popleft()
    yield from drawn
