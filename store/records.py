"""Run records, which say how entries were made: one for each run that writes features.

<store>/runs/<started>-<number>/zarr.json
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from store.entries import read_sealed, write_sealed
from store.errors import DamagedEntry, MissingEntry
from store.objects import Objects
from store.parallel import in_parallel

RUNS = "runs"
_PACKAGES = ("diffdgss", "torch", "diffusers", "numpy", "zarr", "numcodecs")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}


class RunRecord(BaseModel):
    """One run of ``extractor run``.

    Attributes:
        spec: digest of the spec that was extracted.
        dataset: name of the data set in the store.
        options: the command's options, such as {"dataset": "stare:/data/STARE", "views": "identity"}; the
            same command makes the same entries again.
        device: device on which the network ran.
        versions: versions of this package and of those that determine the numbers.
        started: start of the run, UTC, ISO 8601.
        finished: end of the run, likewise; None while it runs, and for good if it was killed.
        counts: what the run did, such as {"extracted": 20, "failed": 1}.
        seconds: {stage: seconds spent in it}.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(default_factory=lambda: f"{_now().replace(':', '')[:17]}-{uuid.uuid4().hex[:8]}")
    spec: str
    dataset: str
    options: dict[str, str | bool] = Field(default_factory=dict)
    device: str = "cpu"
    versions: dict[str, str] = Field(default_factory=_versions)
    started: str = Field(default_factory=_now)
    finished: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    def done(self, counts: dict[str, int], seconds: dict[str, float]) -> RunRecord:
        """A copy of this record, completed at the end of its run."""
        return self.model_copy(update={"finished": _now(), "counts": counts, "seconds": seconds})


class Records:
    """The run records of one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def write(self, record: RunRecord) -> None:
        """Write or replace a record."""
        write_sealed(self._objects, f"{RUNS}/{record.name}", {"run": record.model_dump(mode="json")})

    def all(self) -> list[RunRecord]:
        """All records that can be read, oldest first."""
        return [record for _, record in self.checked() if isinstance(record, RunRecord)]

    def checked(self) -> Iterator[tuple[str, RunRecord | DamagedEntry]]:
        """The name of every record, with the record itself or the error that describes its damage."""
        names = self._objects.names(RUNS)
        for name, found in zip(names, in_parallel(self._read, names), strict=True):
            if found is not None:
                yield name, found

    def _read(self, name: str) -> RunRecord | DamagedEntry | None:
        try:
            record = RunRecord.model_validate(read_sealed(self._objects, f"{RUNS}/{name}")["run"])
        except MissingEntry:  # a folder that something else has left there
            return None
        except DamagedEntry as error:
            return error
        except (KeyError, ValidationError) as error:
            return DamagedEntry(f"{self._objects.location}: the run record {name} is damaged ({error})")
        if record.name != name:  # it is a path in the store to which it is copied
            return DamagedEntry(f"{self._objects.location}: the run record {name} is damaged (its name is another)")
        return record
