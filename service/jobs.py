"""Jobs: many photographs, segmented behind the requests. Their state is on disk and survives a restart.

<jobs>/<id>/job.json            the record, replaced as a whole
<jobs>/<id>/inputs/<number>     uploaded photographs
<jobs>/<id>/results/<number>    answers
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from typing import Literal

import structlog
from pydantic import BaseModel, Field, ValidationError

from service.errors import Busy, Conflict, NotFound, Unavailable
from service.options import Options
from store.errors import MissingEntry
from store.objects import Objects

logger = structlog.get_logger(__name__)
State = Literal["queued", "running", "done", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "cancelled")


class JobItem(BaseModel):
    """One photograph of a job.

    Attributes:
        source: NAME/KEY of a folder that the operator allowed; None for an upload.
    """

    name: str
    state: Literal["waiting", "done", "failed"] = "waiting"
    problem: str | None = Field(default=None, description="why there is no answer")
    source: str | None = None


class JobRecord(BaseModel):
    """A job as it is kept."""

    id: str
    owner: str
    state: State = "queued"
    created: float = Field(description="seconds since 1970")
    finished: float | None = None
    options: Options
    suffix: str = Field(description="of the results' files")
    items: list[JobItem]
    trouble: str | None = Field(default=None, description="why it does not go on")

    def count(self, state: str) -> int:
        """Photographs in a state."""
        return sum(item.state == state for item in self.items)


class Jobs:
    """The jobs at one place.

    Args:
        objects: where they are kept.
        most: unfinished jobs; more are refused.
        hours: finished ones are deleted after so long.
    """

    def __init__(self, objects: Objects, most: int, hours: float) -> None:
        self._objects, self._most, self._hours = objects, most, hours
        self._lock = threading.RLock()

    def create(
        self,
        owner: str,
        options: Options,
        suffix: str,
        names: Sequence[str],
        data: Sequence[bytes] = (),
        sources: Sequence[str] = (),
    ) -> JobRecord:
        """A new job, its photographs written first, so that it is whole or not there.

        Args:
            data: of uploads; sources: of photographs in a folder.

        Raises:
            Busy: too many are unfinished. Unavailable: it cannot be kept.
        """
        self.delete_old()
        unfinished = sum(job.state not in FINISHED for job in self.all())
        if unfinished >= self._most:
            raise Busy(f"{unfinished} jobs are unfinished, no more are taken; ask again later", retry_after=60)
        items = [JobItem(name=name, source=sources[i] if sources else None) for i, name in enumerate(names)]
        record = JobRecord(
            id=uuid.uuid4().hex, owner=owner, created=time.time(), options=options, suffix=suffix, items=items
        )
        try:
            for i, one in enumerate(data):
                self._objects.put(f"{record.id}/inputs/{i:05d}", one)
            self.save(record)
        except OSError as error:  # full, read-only or away
            logger.warning("a job cannot be kept", problem=str(error))
            raise Unavailable("the job cannot be kept; ask again later", retry_after=60) from error
        return record

    def get(self, job_id: str, owner: str) -> JobRecord:
        """A job of this owner; NotFound for any other."""
        record = self.read(job_id)
        if record is None or record.owner != owner:
            raise NotFound("no such job here (any more)")
        return record

    def read(self, job_id: str) -> JobRecord | None:
        """A job, whoever owns it; None if there is none, or it was never complete."""
        if not re.fullmatch(r"[0-9a-f]{32}", job_id):
            return None
        try:
            return JobRecord.model_validate_json(self._objects.get(f"{job_id}/job.json"))
        except MissingEntry:
            return None
        except ValidationError as error:
            logger.warning("a job's record cannot be read", job=job_id, problem=str(error.errors()[0]["msg"]))
            return None

    def all(self) -> list[JobRecord]:
        """Every complete job, the oldest first."""
        records = (self.read(name) for name in self._objects.names(""))
        return sorted((record for record in records if record is not None), key=lambda record: record.created)

    def unfinished(self) -> list[JobRecord]:
        """Jobs with work to do, the oldest first."""
        return [record for record in self.all() if record.state not in FINISHED]

    def save(self, record: JobRecord) -> None:
        """Replace a job's record, unless it has been cancelled meanwhile."""
        with self._lock:
            known = self.read(record.id)
            if known is not None and known.state == "cancelled":
                record.state, record.finished = known.state, known.finished
            self._objects.put(f"{record.id}/job.json", record.model_dump_json().encode())

    def cancel(self, record: JobRecord) -> JobRecord:
        """Stop a job; Conflict if it is finished. What is done stays."""
        with self._lock:
            current = self.read(record.id) or record
            if current.state in FINISHED:
                raise Conflict(f"the job is {current.state} already")
            current.state, current.finished = "cancelled", time.time()
            self._objects.put(f"{current.id}/job.json", current.model_dump_json().encode())
        return current

    def input(self, record: JobRecord, number: int) -> bytes:
        """The bytes of an uploaded photograph."""
        return self._objects.get(f"{record.id}/inputs/{number:05d}")

    def put_result(self, record: JobRecord, number: int, data: bytes) -> None:
        """Keep the answer to one photograph."""
        self._objects.put(f"{record.id}/results/{number:05d}", data)

    def zipped(self, record: JobRecord) -> Iterator[bytes]:
        """A ZIP of all results and ``job.json``, piece by piece."""
        sink = _Sink()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # results are compressed already
            for i, item in enumerate(record.items):
                if item.state == "done":
                    stem = item.name.rsplit(".", 1)[0] or "image"
                    archive.writestr(
                        f"{i:05d}_{stem}{record.suffix}", self._objects.get(f"{record.id}/results/{i:05d}")
                    )
                    yield sink.taken()
            items = [item.model_dump(exclude={"source"}) for item in record.items]
            archive.writestr(
                "job.json", json.dumps({"id": record.id, "state": record.state, "images": items}, indent=1)
            )
        yield sink.taken()

    def delete_old(self) -> None:
        """Delete jobs that have been finished for longer than they are kept."""
        oldest = time.time() - 3600 * self._hours
        for record in self.all():
            if record.finished is not None and record.finished < oldest:
                self._objects.remove(f"{record.id}/job.json")
                self._objects.delete(record.id)


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
