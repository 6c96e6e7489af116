"""The storage of jobs as requests use it: one that hangs costs a request its time, and the others nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TypeVar

import structlog

from service.errors import Unavailable, trouble_of
from service.job_record import JobRecord
from service.jobs import Jobs, Submitted
from service.options import Options
from service.storage import COOL_DOWN, LEAST_RATE

logger = structlog.get_logger(__name__)
T = TypeVar("T")
PATIENCE = 1.0
"""Seconds that a question about readiness waits for the storage of jobs."""


class JobStorage:
    """Jobs, read and written in threads of their own.

    Every coroutine raises Unavailable if the storage did not answer in time, besides what the method of ``Jobs`` of
    the same name raises.

    Args:
        jobs: the stored jobs.
        timeout: seconds until an operation is given up.
        cool_down: seconds between two attempts at a write that only tries whether it succeeds.
    """

    def __init__(self, jobs: Jobs, timeout: float, cool_down: float = COOL_DOWN) -> None:
        self.jobs, self.timeout, self.cool_down = jobs, timeout, cool_down
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="jobs storage")
        self._makers = ThreadPoolExecutor(4, thread_name_prefix="jobs storage, writing")
        self._probing, self._probed = threading.Lock(), -cool_down
        self._probe: Future[None] | None = None

    async def all(self) -> list[JobRecord]:
        """Return every complete job, oldest first."""
        return await self._in_time(self._threads.submit(self.jobs.all))

    async def get(self, job_id: str, owner: str) -> JobRecord:
        """Return a job of this owner."""
        return await self._in_time(self._threads.submit(self.jobs.get, job_id, owner))

    async def cancel(self, record: JobRecord) -> JobRecord:
        """Cancel a job and return its record."""
        return await self._in_time(self._threads.submit(self.jobs.cancel, record))

    async def remove(self, record: JobRecord) -> None:
        """Delete a finished job and its results."""
        await self._in_time(self._threads.submit(self.jobs.remove, record))

    async def result(self, record: JobRecord, number: int) -> bytes:
        """Return the answer to one photograph."""
        return await self._in_time(self._threads.submit(self.jobs.result, record, number))

    async def create(self, owner: str, options: Options, photographs: Sequence[Submitted]) -> JobRecord:
        """Create a job, with more time for larger uploads.

        A job that is not created in time, or whose client has gone, is not created later either.
        """
        late = threading.Event()
        making = self._makers.submit(self.jobs.create, owner, options, photographs, given_up=late.is_set)
        try:
            return await self._in_time(making, sum(len(one.data or b"") for one in photographs) / LEAST_RATE)
        finally:
            late.set()

    def reading(self, job_id: str) -> AbstractContextManager[None]:
        """In this context, this service does not delete the job."""
        return self.jobs.reading(job_id)

    def trouble(self) -> str | None:
        """Try a small write, at most once in ``cool_down`` seconds; return what is wrong.

        No second write is tried while the first one hangs.
        """
        with self._probing:
            if self._probe is None or (self._probe.done() and time.monotonic() - self._probed >= self.cool_down):
                self._probed = time.monotonic()
                self._probe = self._threads.submit(self._try_to_write)
            probe = self._probe
        if not wait([probe], PATIENCE).done:
            return "the storage of jobs does not answer"
        error = probe.exception()
        return trouble_of(error) if isinstance(error, Exception) else None

    def _try_to_write(self) -> None:
        try:
            self.jobs.require_writable()
        except Exception as error:
            logger.warning("the storage of jobs is in trouble", problem=str(error))
            raise

    def close(self) -> None:
        """Stop the threads, without waiting for operations that hang."""
        for threads in (self._threads, self._makers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _in_time(self, future: Future[T], more: float = 0.0) -> T:
        """Return a result that is there within ``timeout`` and ``more`` seconds."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout + more)
        except TimeoutError as error:
            raise Unavailable("jobs cannot be read or stored now; ask again later", retry_after=30) from error
