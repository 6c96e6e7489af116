"""The thread that runs jobs. It keeps only a few photographs in flight, so that requests are not held up."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import NamedTuple

import structlog

from service.answers import Answer, relabelled
from service.engine import Engine
from service.errors import HANDLED_ERRORS, Abandoned, DeviceLost, ServiceError, Unavailable, detail_of
from service.flights import Flight, Ticket
from service.job_record import FINISHED, AnswerSummary, JobItem, JobRecord
from service.jobs import Jobs
from service.outputs import OUTPUTS, SourcePhotograph
from service.settings import Settings
from service.sources import Sources
from store.errors import StoreUnavailable

logger = structlog.get_logger(__name__)
ATTEMPTS = 3
"""Most attempts at a photograph that fails unexpectedly or stops the service. All but the first are made alone."""
PAUSES = (60.0, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Seconds until jobs are looked for without being woken: if none has to wait, and after the first, second, ... attempt
in a row at one that has to."""


class _TakenOver(Exception):
    """Another service has taken a job over: this one slept longer than its lease and may not write the record now."""


class _InFlight(NamedTuple):
    number: int
    data: bytes
    ticket: Ticket
    flight: Flight[Answer] | None
    outcome: Future[Answer]


class JobRunner:
    """Runs the unfinished jobs, oldest first; after a restart it resumes where it was stopped.

    Args:
        jobs: the stored jobs.
        engine: engine that segments the photographs.
        settings: limits of photographs and jobs.
        sources: folders that jobs may read.
    """

    def __init__(self, jobs: Jobs, engine: Engine, settings: Settings, sources: Sources) -> None:
        self._jobs, self._engine = jobs, engine
        self._name = uuid.uuid4().hex  # identifies this run of the service
        self.adopt(settings, sources)
        self._at_once = engine.limits.batch + 1
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def adopt(self, settings: Settings, sources: Sources) -> None:
        """Use other limits and folders from now on."""
        self._settings, self._sources = settings, sources

    def start(self) -> None:
        """Start the thread."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that there is a new job."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the thread once the photographs that are being segmented are finished.

        A thread that the storage of jobs does not answer is left behind after ``deadline`` seconds; the job goes on at
        the next start.
        """
        self._stopping.set()
        self._wake.set()
        self._thread.join(self._settings.deadline)
        if self._thread.is_alive():
            logger.warning("stopped while a job was being run; it goes on at the next start")

    def _run(self) -> None:
        with self._jobs.claims:
            attempts = 0
            while not self._stopping.is_set():
                if self._wake.wait(PAUSES[attempts]):
                    attempts = 0  # a new job does not wait as long as an old one that has failed often
                self._wake.clear()
                attempts = 0 if self._run_jobs() else min(attempts + 1, len(PAUSES) - 1)

    def _run_jobs(self) -> bool:
        """Run every unfinished job; return False if one has to be tried again, which does not stop the others."""
        all_done = True
        try:
            records = self._jobs.delete_old()
            self._jobs.delete_incomplete(records)
        except Exception:  # the storage is unavailable
            logger.exception("jobs cannot be run now")
            return False
        for record in [record for record in records if record.state not in FINISHED]:
            try:
                all_done &= self._run_if_free(record)
            except Exception:
                logger.exception("a job cannot be run now", job=record.id)
                all_done = False
        return all_done

    def _run_if_free(self, found: JobRecord) -> bool:
        """Run a job, unless another service is running it; return False if it has to be tried again."""
        known = found.options.model in (None, *self._engine.models.by_name)
        not_loaded = f"the model {found.options.model} is not loaded"
        if not known and found.trouble == not_loaded and not self._is_overdue(found):
            return True  # another service has its model, and the record says so already
        if not self._jobs.claims.acquire(found.id):
            return True
        try:
            record = self._jobs.read(found.id)  # another service may have changed it since it was listed
            if record is None or record.state in FINISHED:
                return True
            if known:
                return self._run_job(record)
            # Another service has the model, or a reload has removed it.
            self._record_trouble(record, not_loaded)
        except _TakenOver:
            logger.warning("a job has been taken over by another service", job=found.id)
        finally:
            self._jobs.release(found.id)
        return True

    def _run_job(self, record: JobRecord) -> bool:
        """Run a job until its photographs are done or it has to wait; return False if it has to."""
        record.state = "running"
        self._save(record)
        under_way: deque[_InFlight] = deque()
        try:
            record.trouble = self._process(record, under_way)
        finally:
            for one in under_way:  # empty unless an error ended the job
                if one.flight is not None:
                    self._engine.leave(one.flight, one.ticket)
        if record.trouble is not None:
            self._record_trouble(record, record.trouble)
            return record.state in FINISHED
        self._end(record)
        return True

    def _process(self, record: JobRecord, under_way: deque[_InFlight]) -> str | None:
        """Process the photographs until none is left or one cannot be done now; those in flight are always finished.

        Returns:
            The reason why the job has to wait; None if there is none.
        """
        trouble = None
        try:
            self._process_each(record, under_way)
        except Unavailable as error:  # this job is tried again later, others go on
            trouble = str(error)
        while under_way:
            try:
                self._finish(record, under_way.popleft())
            except Unavailable as error:
                trouble = str(error)
        return trouble

    def _save(self, record: JobRecord) -> None:
        """Replace a job's record; raises if another service has taken the job over."""
        self._require_ours(record)
        self._jobs.save(record)

    def _require_ours(self, record: JobRecord) -> None:
        if not self._jobs.claims.is_ours(record.id):
            raise _TakenOver

    def _process_each(self, record: JobRecord, under_way: deque[_InFlight]) -> None:
        """Process photographs, a few at once; those that failed or stopped the service before come last, each alone."""
        while not self._stopping.is_set():
            busy = {one.number for one in under_way}
            left = [i for i, item in enumerate(record.items) if item.state == "waiting" and i not in busy]
            if not left and not under_way:
                return
            troubles = [record.items[i].failed_attempts(self._name) for i in left]
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
        """Mark a job as done if none of its photographs is waiting."""
        if not record.count("waiting"):
            record.state, record.finished = "done", time.time()
            self._require_ours(record)
            self._jobs.forget_inputs(record)
            self._jobs.save(record)

    def _record_trouble(self, record: JobRecord, trouble: str) -> None:
        """Record what keeps a job waiting; if the job is older than ``job_hours``, fail its remaining photographs.

        Trouble that has lasted for so long is not expected to pass.
        """
        if self._is_overdue(record):
            for item in record.items:
                if item.state == "waiting":
                    self._mark_failed(item, ServiceError(trouble))
        record.trouble = trouble
        self._save(record)
        self._end(record)

    def _is_overdue(self, record: JobRecord) -> bool:
        return time.time() - record.created > 3600 * self._settings.job_hours

    def _cancelled(self, record: JobRecord) -> bool:
        current = self._jobs.read(record.id)
        return current is None or current.state == "cancelled"

    def _begin(self, record: JobRecord, number: int, under_way: deque[_InFlight]) -> None:
        """Submit one photograph to the engine; raises Unavailable if its folder cannot be read now."""
        item = record.items[number]
        if item.failed_attempts(self._name) >= ATTEMPTS:
            stopped = f"{len(item.begun_by)} runs of the service were stopped while processing this photograph"
            self._failed(record, number, ServiceError(stopped))
            return
        item.begun_by = tuple(dict.fromkeys((*item.begun_by, self._name)))
        self._save(record)  # before the work, which may kill this process
        try:
            under_way.append(self._ask(record, number))
        except Unavailable:
            self._give_back(item)
            raise
        except HANDLED_ERRORS as error:
            self._failed(record, number, error)
        except Exception:
            self._failed_unexpectedly(record, number)

    def _failed_unexpectedly(self, record: JobRecord, number: int) -> None:
        """Count an unexpected error of one photograph: it is tried again, and failed after ``ATTEMPTS``.

        The rest of the job goes on.
        """
        item = record.items[number]
        item.failures += 1
        self._give_back(item)
        logger.exception("an image of a job failed", job=record.id, times=item.failures)
        if item.failures >= ATTEMPTS:
            self._failed(record, number, ServiceError("internal error; the log of the service has more"))

    def _give_back(self, item: JobItem) -> None:
        item.begun_by = tuple(run for run in item.begun_by if run != self._name)

    def _ask(self, record: JobRecord, number: int) -> _InFlight:
        options, engine = record.options, self._engine
        try:
            data = self._data(record, number)
        except (StoreUnavailable, OSError) as error:  # the storage of jobs is in trouble, not the photograph
            raise Unavailable("the photographs of the job cannot be read now") from error
        if options.model not in (None, *engine.models.by_name):
            raise Unavailable(f"the model {options.model} is not loaded")  # a reload has just removed it
        OUTPUTS[options.output or "png"].check(SourcePhotograph(data, self._settings.max_pixels))
        question = engine.question(data, options.model, options.timesteps, mirrored=options.mirrored)
        ticket, known = Ticket(), engine.cached_answer(question)
        if known is None:
            flight = engine.ask(question, ticket, patient=True)
            return _InFlight(number, data, ticket, flight, flight.future)
        outcome = Future[Answer]()
        outcome.set_result(known)
        return _InFlight(number, data, ticket, None, outcome)

    def _finish(self, record: JobRecord, one: _InFlight) -> None:
        """Store the answer to one photograph; raises Unavailable if there is no room for it, or no answer, now."""
        item = record.items[one.number]
        try:
            answer, rendered = self._rendered(record, one)
            self._keep(record, one.number, rendered)
        except Unavailable as error:
            if not (isinstance(error, DeviceLost) and error.by_this):
                self._give_back(item)
            raise
        except HANDLED_ERRORS as error:
            self._failed(record, one.number, error)
            return
        except _TakenOver:
            raise
        except Exception:
            self._failed_unexpectedly(record, one.number)
            return
        item.state, item.answer = "done", AnswerSummary.of(answer)
        record.trouble = None
        self._engine.metrics.job_images.labels("done").inc()
        self._save(record)
        self._jobs.forget_input(record, one.number)

    def _rendered(self, record: JobRecord, one: _InFlight) -> tuple[Answer, bytes]:
        options = record.options
        try:
            answer = one.outcome.result()
        except (Abandoned, CancelledError) as error:
            raise Unavailable("work on a photograph was abandoned; it is tried again") from error
        source = SourcePhotograph(one.data, self._settings.max_pixels)
        return answer, OUTPUTS[options.output or "png"].render(relabelled(answer, options), options, source)

    def _keep(self, record: JobRecord, number: int, rendered: bytes) -> None:
        try:
            self._require_ours(record)
            self._jobs.put_result(record, number, rendered)
        except OSError as error:  # full, read-only or unavailable
            raise Unavailable("the answers of the job cannot be stored now") from error

    def _failed(self, record: JobRecord, number: int, error: Exception) -> None:
        self._mark_failed(record.items[number], error)
        self._save(record)

    def _mark_failed(self, item: JobItem, error: Exception) -> None:
        item.state, item.problem = "failed", detail_of(error)
        self._engine.metrics.job_images.labels("failed").inc()

    def _data(self, record: JobRecord, number: int) -> bytes:
        source = record.items[number].source
        if source is None:
            return self._jobs.input(record, number)
        return self._sources.read(source, self._settings.max_bytes)
