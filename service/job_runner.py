"""The thread that does jobs: a few photographs at a time, so that requests find room beside them."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import NamedTuple

import structlog

from service.answers import Answer
from service.engine import Engine
from service.errors import EXPECTED, Abandoned, DeviceLost, ServiceError, Unavailable, detail_of
from service.flights import Flight, Ticket
from service.job_record import FINISHED, AnswerSummary, JobItem, JobRecord
from service.jobs import Jobs
from service.outputs import OUTPUTS, SourcePhotograph
from service.settings import Settings
from service.sources import Sources
from store.errors import StoreUnavailable

logger = structlog.get_logger(__name__)
ATTEMPTS = 3
"""A photograph that failed in an unexpected way, or stopped the service, is tried so often, from then on alone."""


class _TakenOver(Exception):
    """Another service is at a job: this one has slept longer than its claim lasts, and may not write of it any more."""


class _InFlight(NamedTuple):
    number: int
    data: bytes
    ticket: Ticket
    flight: Flight[Answer] | None
    answer: Answer | None


class JobRunner:
    """Does what is unfinished, oldest first; started anew, it goes on where it was stopped.

    Args:
        jobs: their state.
        engine: does the work.
        settings: limits.
        sources: folders that may be read.
    """

    def __init__(self, jobs: Jobs, engine: Engine, settings: Settings, sources: Sources) -> None:
        self._jobs, self._engine = jobs, engine
        self._name = uuid.uuid4().hex  # of this run of the service
        self.adopt(settings, sources)
        self._at_once = engine.limits.batch + 1
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def adopt(self, settings: Settings, sources: Sources) -> None:
        """Go on with other limits and folders."""
        self._settings, self._sources = settings, sources

    def start(self) -> None:
        """Begin."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the photographs that are being segmented."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        with self._jobs.claims:
            while not self._stopping.is_set():
                self._wake.wait(60)
                self._wake.clear()
                if not self._do_all():
                    self._stopping.wait(5)
                    self._wake.set()

    def _do_all(self) -> bool:
        """Whether all that could be begun went on to its end; what did not is tried again, the others go on."""
        whole = True
        try:
            self._jobs.delete_old()
            self._jobs.delete_torn()
            unfinished = self._jobs.unfinished()
        except Exception:  # a storage that is away
            logger.exception("jobs cannot be done now")
            return False
        for record in unfinished:
            try:
                self._do_if_free(record)
            except Exception:
                logger.exception("a job cannot be done now", job=record.id)
                whole = False
        return whole

    def _do_if_free(self, found: JobRecord) -> None:
        """Do a job that no other service is at."""
        known = found.options.model in (None, *self._engine.models.by_name)
        if not known and found.trouble is not None and not self._is_overdue(found):
            return  # another service's, and told already
        if not self._jobs.claims.acquire(found.id):
            return
        try:
            record = self._jobs.read(found.id)  # another one may have been at it
            if record is None or record.state in FINISHED:
                return
            if known:
                self._do(record)
            else:  # another service's, or a reload has taken the model away
                self._wait_or_give_up(record, f"the model {record.options.model} is not loaded")
        except _TakenOver:
            logger.warning("a job is left to another service, which has taken it over", job=found.id)
        finally:
            self._jobs.release(found.id)

    def _do(self, record: JobRecord) -> None:
        record.state, record.trouble = "running", None
        self._save(record)
        under_way: deque[_InFlight] = deque()
        try:
            record.trouble = self._do_begun(record, under_way)
        finally:
            for one in under_way:  # of a job that cannot be gone on with
                if one.flight is not None:
                    self._engine.leave(one.flight, one.ticket)
        if record.trouble is not None:
            self._wait_or_give_up(record, record.trouble)
            return
        self._end(record)

    def _do_begun(self, record: JobRecord, under_way: deque[_InFlight]) -> str | None:
        """All photographs, or until one cannot be done now: what keeps it. Those that were asked for are finished."""
        trouble = None
        try:
            self._do_each(record, under_way)
        except Unavailable as error:  # other jobs go on, and this one later
            trouble = str(error)
        while under_way:
            try:
                self._finish(record, under_way.popleft())
            except Unavailable as error:
                trouble = str(error)
        return trouble

    def _save(self, record: JobRecord) -> None:
        """Replace a job's record, which nobody else may be at."""
        self._require_ours(record)
        self._jobs.save(record)

    def _require_ours(self, record: JobRecord) -> None:
        if not self._jobs.claims.is_ours(record.id):
            raise _TakenOver

    def _do_each(self, record: JobRecord, under_way: deque[_InFlight]) -> None:
        """A few at once; alone and last those that have failed, or stopped the service, before."""
        while not self._stopping.is_set():
            busy = {one.number for one in under_way}
            left = [i for i, item in enumerate(record.items) if item.state == "waiting" and i not in busy]
            if not left and not under_way:
                return
            troubles = [record.items[i].troubles_before(self._name) for i in left]
            least = min(troubles, default=0)
            number = left[troubles.index(least)] if left else None
            at_once = 0 if number is None else 1 if least else self._at_once
            if number is None or len(under_way) >= at_once:
                self._finish(record, under_way.popleft())
            elif self._cancelled(record):
                return
            else:
                self._begin(record, number, under_way)

    def _end(self, record: JobRecord) -> None:
        """Nothing of a job waits any more."""
        if not record.count("waiting"):
            record.state, record.finished = "done", time.time()
            self._require_ours(record)
            self._jobs.forget_inputs(record)
            self._jobs.save(record)

    def _wait_or_give_up(self, record: JobRecord, trouble: str) -> None:
        """What keeps a job waiting for longer than finished ones are kept will not end by itself."""
        if self._is_overdue(record):
            for number, item in enumerate(record.items):
                if item.state == "waiting":
                    self._failed(record, number, ServiceError(trouble))
        record.trouble = trouble
        self._save(record)
        self._end(record)

    def _is_overdue(self, record: JobRecord) -> bool:
        return time.time() - record.created > 3600 * self._settings.job_hours

    def _cancelled(self, record: JobRecord) -> bool:
        current = self._jobs.read(record.id)
        return current is None or current.state == "cancelled"

    def _begin(self, record: JobRecord, number: int, under_way: deque[_InFlight]) -> None:
        """Put the question of one photograph; Unavailable where its folder is away."""
        item = record.items[number]
        if item.troubles_before(self._name) >= ATTEMPTS:
            stopped = f"{len(item.begun_by)} runs of the service were stopped while they were at this photograph"
            self._failed(record, number, ServiceError(stopped))
            return
        item.begun_by = tuple(dict.fromkeys((*item.begun_by, self._name)))
        self._save(record)  # before the work, which may be this process's end
        try:
            under_way.append(self._ask(record, number))
        except Unavailable:
            self._give_back(item)
            raise
        except EXPECTED as error:
            self._failed(record, number, error)
        except Exception:
            self._failed_unexpectedly(record, number)

    def _failed_unexpectedly(self, record: JobRecord, number: int) -> None:
        """One photograph's trouble is not the job's: it is tried again, and given up after ``ATTEMPTS``."""
        item = record.items[number]
        item.failures += 1
        self._give_back(item)
        logger.exception("an image of a job failed", job=record.id, times=item.failures)
        if item.failures >= ATTEMPTS:
            self._failed(record, number, ServiceError("internal error; the log of the service has more"))

    def _give_back(self, item: JobItem) -> None:
        item.begun_by = tuple(run for run in item.begun_by if run != self._name)

    def _ask(self, record: JobRecord, number: int) -> _InFlight:
        item, options, engine = record.items[number], record.options, self._engine
        try:
            data = self._data(record, number)
        except (StoreUnavailable, OSError) as error:  # where jobs are kept: nothing is wrong with the photograph
            raise Unavailable("the photographs of the job cannot be read now") from error
        if options.model not in (None, *engine.models.by_name):
            raise Unavailable(f"the model {options.model} is not loaded")  # a reload has just taken it away
        OUTPUTS[options.output or "png"].check(SourcePhotograph(data, item.name, self._settings.max_pixels))
        question = engine.question(data, item.name, options.model, options.timesteps, mirrored=options.mirrored)
        ticket, known = Ticket(), engine.finished(question)
        flight = None if known is not None else engine.ask(question, ticket, patient=True)
        return _InFlight(number, data, ticket, flight, known)

    def _finish(self, record: JobRecord, one: _InFlight) -> None:
        """Keep the answer to one photograph; Unavailable where there is no room for it, or no answer, now."""
        item = record.items[one.number]
        try:
            answer, rendered = self._rendered(record, one)
            self._keep(record, one.number, rendered)
        except Unavailable as error:
            if not (isinstance(error, DeviceLost) and error.by_this):
                self._give_back(item)
            raise
        except EXPECTED as error:
            self._failed(record, one.number, error)
            return
        except _TakenOver:
            raise
        except Exception:
            self._failed_unexpectedly(record, one.number)
            return
        item.state, item.answer = "done", AnswerSummary.of(answer)
        self._engine.metrics.job_images.labels("done").inc()
        self._save(record)
        self._jobs.forget_input(record, one.number)

    def _rendered(self, record: JobRecord, one: _InFlight) -> tuple[Answer, bytes]:
        options, item = record.options, record.items[one.number]
        try:
            answer = one.answer or _result(one.flight.future if one.flight else Future())
        except (Abandoned, CancelledError) as error:
            raise Unavailable("a photograph was given up; it is asked for again") from error
        source = SourcePhotograph(one.data, item.name, self._settings.max_pixels)
        return answer, OUTPUTS[options.output or "png"].render(options.applied(answer), options, source)

    def _keep(self, record: JobRecord, number: int, rendered: bytes) -> None:
        try:
            self._require_ours(record)
            self._jobs.put_result(record, number, rendered)
        except OSError as error:  # full, read-only or away
            raise Unavailable("the answers of the job cannot be kept now") from error

    def _failed(self, record: JobRecord, number: int, error: Exception) -> None:
        record.items[number].state, record.items[number].problem = "failed", detail_of(error)
        self._engine.metrics.job_images.labels("failed").inc()
        self._save(record)

    def _data(self, record: JobRecord, number: int) -> bytes:
        source = record.items[number].source
        if source is None:
            return self._jobs.input(record, number)
        return self._sources.read(source, self._settings.max_bytes)


def _result(future: Future[Answer]) -> Answer:
    return future.result()
