"""Single-flight work: done once for all callers that ask for it, and dropped when nobody waits for it any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Generic, TypeVar

from service.errors import Abandoned, Busy, DeadlinePassed

T = TypeVar("T")


class Ticket:
    """One caller's wait for a flight: until a deadline, or until the caller leaves.

    Args:
        seconds: time until the deadline, counted from now; None waits for ever.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._gone = False

    @property
    def wanted(self) -> bool:
        return not self._gone and (self.deadline is None or time.monotonic() < self.deadline)

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def leave(self) -> None:
        """Stop waiting."""
        self._gone = True


class Flight(Generic[T]):
    """One piece of work, queued or running, and the tickets of the callers that wait for it.

    Attributes:
        key: identifies the work; callers with the same key share it.
        future: future of the result.
        started: whether the work has left the queue.
        tickets: tickets of all callers; empty once the flight has ended.
    """

    def __init__(self, key: Hashable, first: Ticket) -> None:
        self.key = key
        self.future: Future[T] = Future()
        self.started = False
        self.tickets = [first]

    @property
    def wanted(self) -> bool:
        return any(ticket.wanted for ticket in self.tickets)


class Flights(Generic[T]):
    """A thread pool that does the same work once, however many callers ask for it.

    Args:
        workers: flights that run at the same time.
        capacity: most flights running or queued; more are refused.
        on_joined: called each time a caller joins a flight that another one has started.
    """

    def __init__(self, workers: int, capacity: int, on_joined: Callable[[], None] = lambda: None) -> None:
        self.capacity, self._on_joined = capacity, on_joined
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")
        self._lock = threading.Condition()
        self._by_key: dict[Hashable, Flight[T]] = {}
        self._open = 0

    @property
    def count(self) -> int:
        """Number of flights running or queued."""
        return self._open

    def join(
        self, key: Hashable, ticket: Ticket, work: Callable[[Flight[T]], T], *, patient: bool = False
    ) -> Flight[T]:
        """Join the flight of this key, or start it.

        Args:
            patient: wait for a place in the queue instead of being refused.

        Raises:
            Busy: the queue is full, or the pool is shut down.
            Abandoned: the ticket ran out while it waited for a place.
        """
        with self._lock:
            while (flight := self._joined(key, ticket)) is None and self._open >= self.capacity:
                if not patient:
                    raise Busy(f"{self._open} images are in progress or queued, no more are accepted; ask again later")
                self._lock.wait(1.0)
                if not ticket.wanted:
                    raise Abandoned("nobody waits for this answer any more")
            if flight is not None:
                return flight
            flight = self._by_key[key] = Flight(key, ticket)
            self._open += 1
        try:
            self._pool.submit(self._run, flight, work)
        except RuntimeError as error:  # the pool has been shut down
            self._end(flight)
            raise Busy("the service is stopping") from error
        return flight

    def _joined(self, key: Hashable, ticket: Ticket) -> Flight[T] | None:
        """Join the flight of this key and return it; None if there is none that can be joined."""
        flight = self._by_key.get(key)
        if flight is None or not flight.wanted or flight.future.done():
            return None
        flight.tickets.append(ticket)
        self._on_joined()
        return flight

    def leave(self, flight: Flight[T], ticket: Ticket) -> None:
        """Stop waiting for a flight; one that has not begun and that nobody else waits for leaves the queue."""
        ticket.leave()
        with self._lock:
            if flight.started or flight.wanted or flight.future.done():
                return
            flight.future.cancel()
            self._end(flight)

    def wait(self, flight: Flight[T], ticket: Ticket) -> T:
        """Return the result of a flight; raise Busy or DeadlinePassed if it does not come in time."""
        wait_for([flight.future], ticket.remaining)
        try:
            if flight.future.done():
                return flight.future.result()
        except (CancelledError, Abandoned) as error:
            self.leave(flight, ticket)
            raise deadline_error(flight) from error
        self.leave(flight, ticket)
        raise deadline_error(flight)

    def close(self) -> None:
        """Finish the flights that have begun, and cancel the others."""
        with self._lock:
            for flight in [flight for flight in self._by_key.values() if not flight.started]:
                flight.future.cancel()
                self._end(flight)
        self._pool.shutdown(wait=True)

    def _run(self, flight: Flight[T], work: Callable[[Flight[T]], T]) -> None:
        with self._lock:
            if not flight.future.set_running_or_notify_cancel():
                return
            flight.started = True
        try:
            if not flight.wanted:
                raise Abandoned("nobody waits for this answer any more")
            result = work(flight)
        except BaseException as error:
            self._end(flight)
            flight.future.set_exception(error)
        else:
            self._end(flight)
            flight.future.set_result(result)

    def _end(self, flight: Flight[T]) -> None:
        with self._lock:
            if self._by_key.get(flight.key) is flight:
                del self._by_key[flight.key]
            if flight.tickets:
                flight.tickets = []
                self._open -= 1
            self._lock.notify()


def deadline_error(flight: Flight[T]) -> Exception:
    """Return the error for a passed deadline: Busy if the flight was still queued, DeadlinePassed if it had begun."""
    if not flight.started:
        return Busy("the deadline passed before the image's turn came; ask again later")
    return DeadlinePassed("the deadline passed while the image was being segmented; ask again, finished work is kept")
