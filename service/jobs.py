"""Jobs: many photographs, segmented in the background. Their state is stored and survives a restart.

<jobs>/<id>/job.json            the record, replaced as a whole
<jobs>/<id>/inputs/<number>     uploaded photographs, until they are answered
<jobs>/<id>/results/<number>    answers
<jobs>/<id>/cancelled           time of cancellation, which holds even if whoever runs the job replaces the record later
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import structlog
from pydantic import ValidationError

from service.errors import BodyTooLarge, Busy, Conflict, NotFound, Unavailable
from service.job_record import FINISHED, JobItem, JobRecord
from service.options import Options
from service.room import Room
from store.claims import Claims
from store.errors import MissingEntry, StoreError, StoreFull
from store.objects import Objects
from store.parallel import in_parallel
from store.validation import first_problem

logger = structlog.get_logger(__name__)
_ID = re.compile("[0-9a-f]{32}")
RECOUNT = 60.0
"""Seconds for which the known total size of all jobs is used; what other services add meanwhile goes unnoticed."""


class JobLimits(NamedTuple):
    """How many jobs are kept, for how long, and how large they may be.

    Attributes:
        max_unfinished: most unfinished jobs; more are refused.
        hours: hours after which finished jobs are deleted.
        bytes: most bytes of all jobs together; the oldest finished ones are deleted to make room.
    """

    max_unfinished: int
    hours: float
    bytes: int


class Submitted(NamedTuple):
    """A photograph of a new job: uploaded, or in a folder that the operator allowed.

    Attributes:
        name: its name.
        data: its contents, if it is uploaded.
        source: NAME/KEY, if it is in the folder NAME.
    """

    name: str
    data: bytes | None = None
    source: str | None = None


class Jobs:
    """The jobs stored at one place, which several services may share.

    Args:
        objects: storage of the jobs.
        limits: how much is kept.

    Attributes:
        claims: this service's claims on jobs that it is creating or running.
    """

    def __init__(self, objects: Objects, limits: JobLimits) -> None:
        self._objects, self.limits = objects, limits
        self.claims = Claims(objects)
        self._lock = threading.RLock()
        self._making: dict[str, int] = {}  # upload size of each job that is being created
        self._reading: Counter[str] = Counter()  # number of readers of each job's results
        self._counting_readers = threading.Lock()  # never held while storage is waited for, as ``_lock`` is
        self._room = Room()
        self._counted, self._recount = 0, 0.0  # upper bound on the bytes kept, and when to count again

    def create(
        self,
        owner: str,
        options: Options,
        photographs: Sequence[Submitted],
        given_up: Callable[[], bool] = lambda: False,
    ) -> JobRecord:
        """Create a job. Its record is written after its photographs, so that it is complete or does not exist.

        Args:
            owner: name of the key that the job belongs to.
            options: options of the segmentation.
            photographs: what is segmented.
            given_up: asked just before the record is written; the job is not created if nobody waits for it any more.

        Raises:
            BodyTooLarge: there will never be room for the photographs.
            Busy: too many jobs are unfinished, or unfinished ones take all the room.
            Unavailable: the job cannot be stored, or was given up.
        """
        unfinished = sum(job.state not in FINISHED for job in self.delete_old())
        items = [JobItem(name=one.name, source=one.source, bytes=len(one.data or b"")) for one in photographs]
        record = JobRecord(id=uuid.uuid4().hex, owner=owner, created=time.time(), options=options, items=items)
        size = sum(item.bytes for item in items)
        if size > self.limits.bytes:
            raise BodyTooLarge(f"the photographs have {size} bytes, all jobs together may have {self.limits.bytes}")
        with self._lock:
            unfinished += len(self._making)
            if unfinished >= self.limits.max_unfinished:
                raise Busy(f"{unfinished} jobs are unfinished, no more are accepted; ask again later", retry_after=60)
            self._making[record.id] = size
        try:
            self._make_room(size, counted=True)
            self.claims.acquire(record.id)
            for i, one in enumerate(photographs):
                if one.data is not None:
                    self._put(f"{record.id}/inputs/{i:05d}", one.data)
            if given_up():
                raise TimeoutError("nobody waits for the job any more")
            self._objects.put(f"{record.id}/job.json", record.model_dump_json().encode())
        except OSError as error:  # full, read-only or unavailable
            logger.warning("a job cannot be stored", problem=str(error))
            with suppress(OSError):
                self._objects.delete(record.id)
            raise Unavailable("the job cannot be stored; ask again later", retry_after=60) from error
        finally:
            self.release(record.id)
            with self._lock:
                del self._making[record.id]
        return record

    def require_writable(self) -> None:
        """Write a small object and remove it again; raises StoreError or OSError if that is not possible.

        Raises StoreFull also while the last upload or answer that found no room would still find none.
        """
        self._objects.require_writable()
        self._room.require(self._objects)

    def release(self, job_id: str) -> None:
        """Release the claim on a job, so that any service may run it."""
        with suppress(StoreError, OSError, KeyError):  # the claim ends with its lease anyway
            self.claims.release(job_id)

    def _make_room(self, size: int, *, counted: bool = False) -> None:
        """Make room for ``size`` more bytes by deleting the oldest finished jobs.

        Args:
            size: bytes to be written; negative if fewer are kept afterwards.
            counted: whether the bytes are of a job being created, and thus in ``_making`` already.

        Raises:
            Busy: unfinished jobs take all the room.
        """
        with self._lock:
            self._counted += size
            if time.monotonic() < self._recount and self._counted <= self.limits.bytes:
                return
        records = self.all()
        with self._lock:
            here = {job.id for job in records}
            coming = sum(making for job_id, making in self._making.items() if job_id not in here)
            self._counted = sum(job.bytes for job in records) + coming + (0 if counted else size)
            self._recount = time.monotonic() + RECOUNT
            too_many = self._counted - self.limits.bytes
            finished = [job for job in records if job.state in FINISHED and job.bytes and not self._reading[job.id]]
        if too_many > sum(job.bytes for job in finished):
            raise Busy("unfinished jobs take all the room there is; ask again later", retry_after=60)
        for job in finished:
            if too_many <= 0:
                return
            logger.warning("a finished job is deleted to make room", job=job.id)
            self._delete(job.id)
            too_many -= job.bytes

    def get(self, job_id: str, owner: str) -> JobRecord:
        """Return a job of this owner; raises NotFound if there is none, or if it belongs to another."""
        record = self.read(job_id)
        if record is None or record.owner != owner:
            raise NotFound("no such job here (any more)")
        return record

    def read(self, job_id: str) -> JobRecord | None:
        """Return a job, whoever owns it; None if it does not exist or its record cannot be read."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            record = JobRecord.model_validate_json(self._objects.get(f"{job_id}/job.json"))
        except MissingEntry:
            return None
        except ValidationError as error:
            logger.warning("a job's record cannot be read", job=job_id, problem=first_problem(error))
            return None
        if record.state not in FINISHED:
            with suppress(MissingEntry):
                record.end_as_cancelled(_time_in(self._objects.get(f"{job_id}/cancelled")))
        return record

    def all(self) -> list[JobRecord]:
        """Return every complete job, oldest first."""
        records = in_parallel(self.read, self._objects.names(""))
        return sorted((record for record in records if record is not None), key=lambda record: record.created)

    def save(self, record: JobRecord) -> None:
        """Replace a job's record. A job cancelled or done meanwhile stays so; a deleted one is not written again."""
        with self._lock:
            known = self.read(record.id)
            if known is None or known.state == "done":
                return
            if known.state == "cancelled":
                record.end_as_cancelled(known.finished or time.time())
            self._objects.put(f"{record.id}/job.json", record.model_dump_json().encode())

    def cancel(self, record: JobRecord) -> JobRecord:
        """Cancel a job and return its record; raises Conflict if it is finished. Results that exist are kept."""
        with self._lock:
            current = self.read(record.id) or record
            if current.state in FINISHED:
                raise Conflict(f"the job is {current.state} already")
            current.end_as_cancelled(time.time())
            self._objects.put(f"{current.id}/cancelled", str(current.finished).encode())
            self.forget_inputs(current)
            self._objects.put(f"{current.id}/job.json", current.model_dump_json().encode())
        return current

    def remove(self, record: JobRecord) -> None:
        """Delete a finished job and its results; raises Conflict if it is unfinished or its results are being read."""
        with self._lock:
            current = self.read(record.id) or record
            if current.state not in FINISHED:
                raise Conflict(f"the job is {current.state}; cancel it first")
            if self._reading[record.id]:
                raise Conflict("its results are being read; ask again later")
            self._delete(record.id)

    def forget_input(self, record: JobRecord, number: int) -> None:
        """Delete an uploaded photograph; to be called once the stored record says that it is answered."""
        if record.items[number].source is None:
            self._objects.remove(f"{record.id}/inputs/{number:05d}")

    def forget_inputs(self, record: JobRecord) -> None:
        """Delete all uploaded photographs of a job that is finished."""
        self._objects.delete(f"{record.id}/inputs")
        for item in record.items:
            item.bytes = 0

    def input(self, record: JobRecord, number: int) -> bytes:
        """Return the bytes of an uploaded photograph."""
        return self._objects.get(f"{record.id}/inputs/{number:05d}")

    def put_result(self, record: JobRecord, number: int, data: bytes) -> None:
        """Store the answer to one photograph; in the size of the job it replaces the upload.

        Nothing is stored if the job has been deleted.

        Raises:
            Busy: there is no room for it.
            OSError: it cannot be written.
        """
        if not self._objects.exists(f"{record.id}/job.json"):
            return
        item = record.items[number]
        self._make_room(len(data) - item.bytes)
        self._put(f"{record.id}/results/{number:05d}", data)
        record.result_bytes, item.bytes = record.result_bytes + len(data), 0

    def _put(self, key: str, data: bytes) -> None:
        """Write an upload or an answer, and remember its size if there is no room for it."""
        try:
            self._objects.put(key, data)
        except StoreFull:
            self._room.lacked(len(data))
            raise
        self._room.found(len(data), self._objects)

    def result(self, record: JobRecord, number: int) -> bytes:
        """Return the answer to one photograph."""
        return self._objects.get(f"{record.id}/results/{number:05d}")

    @contextmanager
    def reading(self, job_id: str) -> Iterator[None]:
        """In this context, this service does not delete the job. Entering it never waits for the storage."""
        with self._counting_readers:
            self._reading[job_id] += 1
        try:
            yield
        finally:
            with self._counting_readers:
                self._reading[job_id] -= 1

    def delete_old(self) -> list[JobRecord]:
        """Delete jobs that were finished more than ``limits.hours`` ago; return the others, oldest first."""
        oldest, kept = time.time() - 3600 * self.limits.hours, list[JobRecord]()
        for record in self.all():
            if record.finished is not None and record.finished < oldest and not self._reading[record.id]:
                self._delete(record.id)
            else:
                kept.append(record)
        return kept

    def delete_incomplete(self, complete: Iterable[JobRecord]) -> None:
        """Delete the remains of incomplete jobs.

        Their process was killed while it created or deleted them, or they were deleted while being run.

        Args:
            complete: jobs that need not be looked at.
        """
        known = {record.id for record in complete}
        for name in self._objects.names(""):
            if name in known or not _ID.fullmatch(name) or self.claims.is_held(name):
                continue
            if not self._objects.exists(f"{name}/job.json"):
                logger.warning("the remains of an incomplete job are deleted", job=name)
                self._objects.delete(name)

    def _delete(self, job_id: str) -> None:
        self._objects.remove(f"{job_id}/job.json")
        self._objects.delete(job_id)


def _time_in(data: bytes) -> float:
    """Return the time that a ``cancelled`` object holds, seconds since 1970; now, if a power failure damaged it."""
    try:
        return float(data)
    except ValueError:
        return time.time()
