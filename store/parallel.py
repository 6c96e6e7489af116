"""Many small reads at once, since walking a store mostly means waiting for a disk or a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of ``work`` in the order of the items, computed a few items ahead.

    After an error, or when the caller stops iterating, no further item is started.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
