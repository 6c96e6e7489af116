"""Jobs: many photographs, segmented behind the requests. Their state is on disk and survives a restart.

<jobs>/<id>/job.json            the record, replaced as a whole
<jobs>/<id>/inputs/<number>     uploaded photographs, until they are answered
<jobs>/<id>/results/<number>    answers
<jobs>/<id>/cancelled           when it was cancelled: whoever is at it may replace the record once more
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog
from pydantic import ValidationError

from service.errors import Busy, Conflict, NotFound, Unavailable
from service.job_record import FINISHED, JobItem, JobRecord, as_report, as_table
from service.options import Options
from store.claims import Claims
from store.errors import MissingEntry, StoreError
from store.objects import Objects

logger = structlog.get_logger(__name__)
_ID = re.compile("[0-9a-f]{32}")
RECOUNT = 60.0
"""Seconds for which what others add to the jobs is not noticed."""


class JobLimits(NamedTuple):
    """How much is kept.

    Attributes:
        most: unfinished jobs; more are refused.
        hours: finished ones are deleted after so long.
        bytes: of all jobs together; the oldest finished ones make room for new ones.
    """

    most: int
    hours: float
    bytes: int


class Jobs:
    """The jobs at one place.

    Args:
        objects: where they are kept.
        limits: how much of them.

    Attributes:
        claims: on jobs that are being taken or done. Several services may keep their jobs at one place.
    """

    def __init__(self, objects: Objects, limits: JobLimits) -> None:
        self._objects, self.limits = objects, limits
        self.claims = Claims(objects)
        self._lock = threading.RLock()
        self._making: dict[str, int] = {}  # bytes of jobs that are being taken
        self._reading: Counter[str] = Counter()  # readers of each job's results
        self._counted, self._recount = 0, 0.0  # bytes that are kept, at most, and when to look again

    def create(
        self,
        owner: str,
        options: Options,
        suffix: str,
        names: Sequence[str],
        data: Sequence[bytes] = (),
        sources: Sequence[str] = (),
        given_up: Callable[[], bool] = lambda: False,
    ) -> JobRecord:
        """A new job, its photographs written first, so that it is whole or not there.

        Args:
            data: of uploads; sources: of photographs in a folder.
            given_up: asked before it is there: whether nobody waits for it any more.

        Raises:
            Busy: too many are unfinished, or take all the room. Unavailable: it cannot be kept.
        """
        self.delete_old()
        items = [
            JobItem(name=name, source=sources[i] if sources else None, bytes=len(data[i]) if data else 0)
            for i, name in enumerate(names)
        ]
        record = JobRecord(
            id=uuid.uuid4().hex,
            owner=owner,
            created=time.time(),
            options=options,
            suffix=suffix,
            items=items,
        )
        size = sum(map(len, data))
        unfinished = sum(job.state not in FINISHED for job in self.all())
        with self._lock:
            unfinished += len(self._making)
            if unfinished >= self.limits.most:
                raise Busy(f"{unfinished} jobs are unfinished, no more are taken; ask again later", retry_after=60)
            self._making[record.id] = size
        try:
            self._make_room(size, counted=True)
            self.claims.acquire(record.id)
            for i, one in enumerate(data):
                self._objects.put(f"{record.id}/inputs/{i:05d}", one)
            if given_up():
                raise TimeoutError("nobody waits for the job any more")
            self._objects.put(f"{record.id}/job.json", record.model_dump_json().encode())
        except OSError as error:  # full, read-only or away
            logger.warning("a job cannot be kept", problem=str(error))
            with suppress(OSError):
                self._objects.delete(record.id)
            raise Unavailable("the job cannot be kept; ask again later", retry_after=60) from error
        finally:
            self.release(record.id)
            with self._lock:
                del self._making[record.id]
        return record

    def release(self, job_id: str) -> None:
        """Somebody else may do a job."""
        with suppress(StoreError, OSError, KeyError):  # the lease will end the claim
            self.claims.release(job_id)

    def _make_room(self, size: int, *, counted: bool = False) -> None:
        """Room for so many bytes, at the cost of the oldest finished jobs; Busy if unfinished ones take it all.

        Args:
            counted: they are of a job that is being taken.
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
            logger.warning("a finished job makes room for a new one", job=job.id)
            self._delete(job.id)
            too_many -= job.bytes

    def get(self, job_id: str, owner: str) -> JobRecord:
        """A job of this owner; NotFound for any other."""
        record = self.read(job_id)
        if record is None or record.owner != owner:
            raise NotFound("no such job here (any more)")
        return record

    def read(self, job_id: str) -> JobRecord | None:
        """A job, whoever owns it; None if there is none, or it was never complete."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            record = JobRecord.model_validate_json(self._objects.get(f"{job_id}/job.json"))
        except MissingEntry:
            return None
        except ValidationError as error:
            logger.warning("a job's record cannot be read", job=job_id, problem=str(error.errors()[0]["msg"]))
            return None
        if record.state not in FINISHED:
            with suppress(MissingEntry):
                record.end_as_cancelled(_time_in(self._objects.get(f"{job_id}/cancelled")))
        return record

    def all(self) -> list[JobRecord]:
        """Every complete job, the oldest first."""
        records = (self.read(name) for name in self._objects.names(""))
        return sorted((record for record in records if record is not None), key=lambda record: record.created)

    def unfinished(self) -> list[JobRecord]:
        """Jobs with work to do, the oldest first."""
        return [record for record in self.all() if record.state not in FINISHED]

    def save(self, record: JobRecord) -> None:
        """Replace a job's record; one that was cancelled or done meanwhile stays so, one that was deleted is gone."""
        with self._lock:
            known = self.read(record.id)
            if known is None or known.state == "done":
                return
            if known.state == "cancelled":
                record.end_as_cancelled(known.finished or time.time())
            self._objects.put(f"{record.id}/job.json", record.model_dump_json().encode())

    def cancel(self, record: JobRecord) -> JobRecord:
        """Stop a job; Conflict if it is finished. What is done stays."""
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
        """Delete a finished job and its results; Conflict if it is not finished, or somebody reads them now."""
        with self._lock:
            current = self.read(record.id) or record
            if current.state not in FINISHED:
                raise Conflict(f"the job is {current.state}; cancel it first")
            if self._reading[record.id]:
                raise Conflict("its results are being read; ask again later")
            self._delete(record.id)

    def forget_input(self, record: JobRecord, number: int) -> None:
        """Delete a photograph whose answer is kept, once the record says so."""
        if record.items[number].source is None:
            self._objects.remove(f"{record.id}/inputs/{number:05d}")

    def forget_inputs(self, record: JobRecord) -> None:
        """Delete the photographs of a job that is finished."""
        self._objects.delete(f"{record.id}/inputs")
        for item in record.items:
            item.bytes = 0

    def input(self, record: JobRecord, number: int) -> bytes:
        """The bytes of an uploaded photograph."""
        return self._objects.get(f"{record.id}/inputs/{number:05d}")

    def put_result(self, record: JobRecord, number: int, data: bytes) -> None:
        """Keep the answer to one photograph, whose place it takes; of a job that was deleted nothing is kept.

        Raises:
            Busy: there is no room for it. OSError: it cannot be written.
        """
        if not self._objects.exists(f"{record.id}/job.json"):
            return
        item = record.items[number]
        self._make_room(len(data) - item.bytes)
        self._objects.put(f"{record.id}/results/{number:05d}", data)
        record.result_bytes, item.bytes = record.result_bytes + len(data), 0

    def zipped(self, record: JobRecord) -> Iterator[bytes]:
        """A ZIP of all results and ``job.json``, piece by piece; while it is read, the job makes no room for others."""
        with self._lock:
            self._reading[record.id] += 1
        try:
            yield from self._zipped(record)
        finally:
            with self._lock:
                self._reading[record.id] -= 1

    def _zipped(self, record: JobRecord) -> Iterator[bytes]:
        sink = _Sink()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # results are compressed already
            for i in range(len(record.items)):
                if (file := record.file_of(i)) is not None:
                    archive.writestr(file, self._objects.get(f"{record.id}/results/{i:05d}"))
                    yield sink.taken()
            archive.writestr("images.csv", as_table(record))
            archive.writestr("job.json", json.dumps(as_report(record), indent=1))
        yield sink.taken()

    def delete_old(self) -> None:
        """Delete jobs that have been finished for longer than they are kept."""
        oldest = time.time() - 3600 * self.limits.hours
        for record in self.all():
            if record.finished is not None and record.finished < oldest and not self._reading[record.id]:
                self._delete(record.id)

    def delete_torn(self) -> None:
        """Delete what is left of a job that a killed process was taking or deleting, or that was deleted meanwhile."""
        for name in self._objects.names(""):
            if not _ID.fullmatch(name) or self.claims.is_held(name):
                continue
            if not self._objects.exists(f"{name}/job.json"):
                logger.warning("what is left of a torn job is deleted", job=name)
                self._objects.delete(name)

    def _delete(self, job_id: str) -> None:
        self._objects.remove(f"{job_id}/job.json")
        self._objects.delete(job_id)


def _time_in(data: bytes) -> float:
    """Seconds since 1970; now, where a device that lost its power has not kept them."""
    try:
        return float(data)
    except ValueError:
        return time.time()


class _Sink(io.RawIOBase):
    """What a ZIP is written into, taken away in pieces; it cannot go back."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]  # any buffer
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """What was written since this was last asked."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
