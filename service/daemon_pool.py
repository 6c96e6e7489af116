"""A pool of threads that do not keep the process from ending, for operations on storage that may hang.

Python waits at its end for the threads of a ``ThreadPoolExecutor``, even after ``shutdown(wait=False)``. Storage that
does not answer would then keep a service from stopping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool:
    """Runs calls in threads of its own; safe to use from several threads.

    Args:
        threads: most threads; each is started when there is a call for it.
        name: prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name = threads, name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = 0
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; RuntimeError once the pool is closed."""
        future = Future[T]()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name} are closed")
            self._calls.put((future, call))
            if self._started < self._threads:
                threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
        return future

    def close(self) -> None:
        """Cancel the calls that have not begun, and end the threads; calls that hang are left to themselves."""
        with self._lock:
            self._closed = True
            while True:
                try:
                    queued = self._calls.get_nowait()
                except Empty:
                    break
                if queued is not None:
                    queued[0].cancel()
            for _ in range(self._started):
                self._calls.put(None)

    def _run(self) -> None:
        while (queued := self._calls.get()) is not None:
            future, call = queued
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del queued, future, call  # so that what they hold is freed before the next call
