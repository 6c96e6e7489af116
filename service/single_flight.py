"""Single-flight calls: what several threads need at the same time is made by one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

from service.errors import Abandoned

T = TypeVar("T")
Wanted = Callable[[], bool]


class SingleFlight(Generic[T]):
    """Work identified by a key: the first caller does it in its own thread, the others wait for its result."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, tuple[Future[T], list[Wanted]]] = {}

    def do(self, key: Hashable, wanted: Wanted, work: Callable[[Wanted], T]) -> T:
        """Return the result of ``work``, done by this caller or by another one with the same key.

        Args:
            key: identifies the work.
            wanted: returns whether this caller still wants the result.
            work: gets a function that returns whether any of the callers still wants the result.

        Raises:
            Abandoned: this caller did not want the result any more while it waited for another one's work.
        """
        with self._lock:
            known = self._under_way.get(key)
            if known is not None:
                known[1].append(wanted)
            else:
                future, all_wanted = self._under_way[key] = Future(), [wanted]
        if known is not None:
            try:
                return _waited_for(known[0], wanted)
            except Abandoned:
                if not wanted():
                    raise
                return self.do(key, wanted, work)  # the others gave it up just before this caller joined
        try:
            result = work(lambda: any(one() for one in list(all_wanted)))
        except BaseException as error:
            self._done(key)
            future.set_exception(error)
            raise
        self._done(key)
        future.set_result(result)
        return result

    def _done(self, key: Hashable) -> None:
        with self._lock:
            del self._under_way[key]


def _waited_for(future: Future[T], wanted: Wanted) -> T:
    while True:
        try:
            return future.result(0.25)
        except FutureTimeout:
            if future.done():  # meanwhile, or the work itself raised a TimeoutError
                return future.result()
            if not wanted():
                raise Abandoned("nobody waits for this answer any more") from None
