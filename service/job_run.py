"""One run of a job: a few of its photographs are segmented at once, and its record says how far it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from service.answers import Answer, relabelled
from service.engine import Engine
from service.errors import HANDLED_ERRORS, Abandoned, DeviceLost, ServiceError, Unavailable, detail_of
from service.flights import Flight, Ticket
from service.job_record import FINISHED, AnswerSummary, JobItem, JobRecord
from service.jobs import Jobs
from service.outputs import SourcePhotograph
from service.settings import Settings
from service.sources import Sources
from store.errors import StoreUnavailable

logger = structlog.get_logger(__name__)
ATTEMPTS = 3
"""Most attempts at a photograph that fails unexpectedly or stops the service. All but the first are made alone."""


class TakenOver(Exception):
    """Another service has taken a job over: this one slept longer than its lease and may not write the record now."""


@dataclass
class Surroundings:
    """What runs of jobs work with; a reload replaces settings and sources, also for those that are under way.

    Attributes:
        jobs: the stored jobs.
        engine: segments the photographs.
        settings: limits of photographs and jobs.
        sources: folders that jobs may read.
        name: identifies this run of the service.
        stopping: is set once the service stops; photographs that have been begun are finished.
    """

    jobs: Jobs
    engine: Engine
    settings: Settings
    sources: Sources
    name: str
    stopping: threading.Event = field(default_factory=threading.Event)


class _InFlight(NamedTuple):
    number: int
    data: bytes
    ticket: Ticket
    flight: Flight[Answer] | None
    outcome: Future[Answer]


class JobRun:
    """One run of a job whose claim is held; it ends when nothing is left to do or the job has to wait.

    Args:
        record: the record of the job.
        around: what the run works with.
    """

    def __init__(self, record: JobRecord, around: Surroundings) -> None:
        self._record, self._around = record, around
        self._jobs, self._engine = around.jobs, around.engine
        self._under_way: deque[_InFlight] = deque()

    def run(self) -> bool:
        """Run the job until its photographs are done or it has to wait; return False if it has to be tried again.

        Raises:
            TakenOver: another service is running the job now.
            StoreError, OSError: the record cannot be read or written.
        """
        record = self._record
        record.state = "running"
        self._save()
        try:
            trouble = self._process()
        finally:
            for one in self._under_way:  # empty unless an error ended the run
                if one.flight is not None:
                    self._engine.leave(one.flight, one.ticket)
        if trouble is not None:
            self.wait(trouble)
            return record.state in FINISHED
        record.trouble = None
        self._end()
        return True

    def wait(self, trouble: str) -> None:
        """Record what keeps the job waiting; if it is overdue, fail its remaining photographs.

        Trouble that has lasted for so long is not expected to pass.
        """
        if is_overdue(self._record, self._around.settings):
            for item in self._record.items:
                if item.state == "waiting":
                    self._mark_failed(item, ServiceError(trouble))
        if trouble != self._record.trouble:
            logger.warning("a job has to wait", job=self._record.id, problem=trouble)
        self._record.trouble = trouble
        self._save()
        self._end()

    def _process(self) -> str | None:
        """Process the photographs until none is left or one cannot be done now; those in flight are always finished.

        Returns:
            The reason why the job has to wait; None if there is none.
        """
        trouble = None
        try:
            self._process_each()
        except Unavailable as error:  # this job is tried again later, others go on
            trouble = str(error)
        while self._under_way:
            try:
                self._finish(self._under_way.popleft())
            except Unavailable as error:
                trouble = str(error)
        return trouble

    def _process_each(self) -> None:
        """Process photographs, a few at once; those that failed or stopped the service before come last, each alone."""
        items = self._record.items
        while not self._around.stopping.is_set():
            busy = {one.number for one in self._under_way}
            left = [i for i, item in enumerate(items) if item.state == "waiting" and i not in busy]
            if not left and not self._under_way:
                return
            troubles = [items[i].failed_attempts(self._around.name) for i in left]
            least = min(troubles, default=0)
            number = left[troubles.index(least)] if left else None
            at_once = 0 if number is None else 1 if least else self._engine.limits.batch + 1
            if number is None or len(self._under_way) >= at_once:
                self._finish(self._under_way.popleft())
            elif self._is_cancelled():
                return
            else:
                self._begin(number)

    def _begin(self, number: int) -> None:
        """Submit one photograph to the engine; raises Unavailable if its folder cannot be read now."""
        item = self._record.items[number]
        if item.failed_attempts(self._around.name) >= ATTEMPTS:
            stopped = f"{len(item.begun_by)} runs of the service were stopped while processing this photograph"
            self._failed(item, ServiceError(stopped))
            return
        item.begun_by = tuple(dict.fromkeys((*item.begun_by, self._around.name)))
        self._save()  # before the work, which may kill this process
        try:
            self._under_way.append(self._ask(number))
        except Unavailable:
            self._give_back(item)
            raise
        except HANDLED_ERRORS as error:
            self._failed(item, error)
        except Exception:
            self._failed_unexpectedly(item)

    def _ask(self, number: int) -> _InFlight:
        options, engine = self._record.options, self._engine
        try:
            data = self._data(number)
        except (StoreUnavailable, OSError) as error:  # the storage of jobs is in trouble, not the photograph
            raise Unavailable("the photographs of the job cannot be read now") from error
        if options.model not in (None, *engine.models.by_name):
            raise Unavailable(f"the model {options.model} is not loaded")  # a reload has just removed it
        self._record.output.check(SourcePhotograph(data, self._around.settings.max_pixels))
        question = engine.question(data, options.model, options.timesteps, mirrored=options.mirrored)
        ticket, known = Ticket(), engine.cached_answer(question)
        if known is None:
            flight = engine.ask(question, ticket, patient=True)
            return _InFlight(number, data, ticket, flight, flight.future)
        outcome = Future[Answer]()
        outcome.set_result(known)
        return _InFlight(number, data, ticket, None, outcome)

    def _data(self, number: int) -> bytes:
        source = self._record.items[number].source
        if source is None:
            return self._jobs.input(self._record, number)
        return self._around.sources.read(source, self._around.settings.max_bytes)

    def _finish(self, one: _InFlight) -> None:
        """Store the answer to one photograph; raises Unavailable if there is no room for it, or no answer, now."""
        item = self._record.items[one.number]
        try:
            answer, rendered = self._rendered(one)
            self._keep(one.number, rendered)
        except Unavailable as error:
            if not (isinstance(error, DeviceLost) and error.by_this):
                self._give_back(item)
            raise
        except HANDLED_ERRORS as error:
            self._failed(item, error)
            return
        except TakenOver:
            raise
        except Exception:
            self._failed_unexpectedly(item)
            return
        item.state, item.answer = "done", AnswerSummary.of(answer)
        self._record.trouble = None
        self._engine.metrics.job_images.labels("done").inc()
        self._save()
        self._jobs.forget_input(self._record, one.number)

    def _rendered(self, one: _InFlight) -> tuple[Answer, bytes]:
        options = self._record.options
        try:
            answer = one.outcome.result()
        except (Abandoned, CancelledError) as error:
            raise Unavailable("work on a photograph was abandoned; it is tried again") from error
        source, answer = SourcePhotograph(one.data, self._around.settings.max_pixels), relabelled(answer, options)
        return answer, self._record.output.render(answer, options, source)

    def _keep(self, number: int, rendered: bytes) -> None:
        try:
            self._require_ours()
            self._jobs.put_result(self._record, number, rendered)
        except OSError as error:  # full, read-only or unavailable
            raise Unavailable("the answers of the job cannot be stored now") from error

    def _failed(self, item: JobItem, error: Exception) -> None:
        self._mark_failed(item, error)
        self._save()

    def _failed_unexpectedly(self, item: JobItem) -> None:
        """Count an unexpected error of one photograph: it is tried again, and failed after ``ATTEMPTS``.

        The rest of the job goes on.
        """
        item.failures += 1
        self._give_back(item)
        logger.exception("an image of a job failed", job=self._record.id, times=item.failures)
        if item.failures >= ATTEMPTS:
            self._failed(item, ServiceError("internal error; the log of the service has more"))

    def _mark_failed(self, item: JobItem, error: Exception) -> None:
        item.state, item.problem = "failed", detail_of(error)
        self._engine.metrics.job_images.labels("failed").inc()

    def _give_back(self, item: JobItem) -> None:
        item.begun_by = tuple(run for run in item.begun_by if run != self._around.name)

    def _is_cancelled(self) -> bool:
        current = self._jobs.read(self._record.id)
        return current is None or current.state == "cancelled"

    def _end(self) -> None:
        """Mark the job as done if none of its photographs is waiting."""
        record = self._record
        if not record.count("waiting"):
            record.state, record.finished = "done", time.time()
            self._require_ours()
            self._jobs.forget_inputs(record)
            self._jobs.save(record)

    def _save(self) -> None:
        """Replace the job's record; raises TakenOver if another service has taken the job over."""
        self._require_ours()
        self._jobs.save(self._record)

    def _require_ours(self) -> None:
        if not self._jobs.claims.is_ours(self._record.id):
            raise TakenOver


def is_overdue(record: JobRecord, settings: Settings) -> bool:
    """Return whether a job was created more than ``job_hours`` ago."""
    return time.time() - record.created > 3600 * settings.job_hours
