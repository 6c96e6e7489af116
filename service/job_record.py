"""The record of a job: how it is stored, and how it is reported to the job's owner."""

from __future__ import annotations

import csv
import io
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from service.answers import Answer
from service.options import Options
from service.outputs import OUTPUTS, Output
from service.schemas import DISCLAIMER

State = Literal["queued", "running", "done", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "cancelled")


class AnswerSummary(BaseModel):
    """What an answer reports about itself; kept beside the answer's file, since most formats cannot hold it."""

    image_id: str
    model: str
    version: str
    spec: str
    abstain: bool | None
    distance: float | None
    residual: float | None
    unusual: tuple[str, ...] = Field(default=(), description="what made it abstain: distance, residual")
    shares: dict[str, float] = Field(
        default_factory=dict, description="of the field of view, of each class but the background"
    )
    expected_dice: dict[str, float | None] = Field(default_factory=dict, description="of each class but the background")
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, answer: Answer) -> AnswerSummary:
        """The summary of an answer."""
        score = answer.domain
        return cls(
            image_id=answer.image_id,
            model=answer.model,
            version=answer.version,
            spec=answer.spec,
            abstain=answer.abstain,
            distance=None if score is None else score.distance,
            residual=None if score is None else score.residual,
            unusual=() if score is None else score.reasons,
            shares={name: area.share for name, area in answer.areas.items() if name != answer.classes[0]},
            expected_dice=answer.expected_dice,
            warnings=answer.warnings,
        )


class JobItem(BaseModel):
    """One photograph of a job.

    Attributes:
        source: NAME/KEY, where the operator allowed the folder NAME; None for an upload.
        begun_by: runs of the service that began it and neither finished it nor gave it back. All but the present run
            were stopped while they were at it.
        failures: times that it failed in an unexpected way.
        answer: summary of its answer.
    """

    name: str
    state: Literal["waiting", "done", "failed"] = "waiting"
    problem: str | None = Field(default=None, description="why there is no answer")
    source: str | None = None
    bytes: int = Field(default=0, description="size of an uploaded photograph, while it is kept")
    begun_by: tuple[str, ...] = ()
    failures: int = 0
    # Older records call it ``told``.
    answer: AnswerSummary | None = Field(default=None, validation_alias=AliasChoices("answer", "told"))

    def failed_attempts(self, run: str) -> int:
        """Return how often it failed, or another run of the service than ``run`` was stopped while at it."""
        return self.failures + len(set(self.begun_by) - {run})


class JobRecord(BaseModel):
    """The stored record of a job."""

    id: str
    owner: str
    state: State = "queued"
    created: float = Field(description="seconds since 1970")
    finished: float | None = None
    options: Options
    items: list[JobItem]
    trouble: str | None = Field(default=None, description="why the job cannot continue at present")
    result_bytes: int = Field(default=0, description="total size of the results")

    @property
    def output(self) -> Output:
        """The format of the results."""
        return OUTPUTS[self.options.output or "png"]

    @property
    def bytes(self) -> int:
        """Total size of the uploads and results that are kept."""
        return self.result_bytes + sum(item.bytes for item in self.items)

    def count(self, state: str) -> int:
        """Return the number of photographs in a state."""
        return sum(item.state == state for item in self.items)

    def end_as_cancelled(self, finished: float) -> None:
        """Mark the job as cancelled at a time, seconds since 1970, and its uploads as deleted."""
        self.state, self.finished = "cancelled", finished
        for item in self.items:
            item.bytes = 0

    def file_of(self, number: int) -> str | None:
        """Return the name of a photograph's answer in the ZIP; None where there is no answer."""
        item = self.items[number]
        if item.state != "done":
            return None
        return f"{number:05d}_{item.name.rsplit('.', 1)[0] or 'image'}{self.output.suffix}"


def as_report(record: JobRecord) -> dict[str, Any]:
    """Return a job, its photographs and the summaries of their answers as values for JSON."""
    cancelled = record.state == "cancelled"
    images = [
        {"number": i}
        | item.model_dump(exclude={"bytes", "begun_by", "failures", "answer"})
        | {"file": record.file_of(i)}
        | ({"problem": "the job was cancelled before"} if item.state == "waiting" and cancelled else {})
        | (item.answer.model_dump(mode="json") if item.answer else {})
        for i, item in enumerate(record.items)
    ]
    return {
        "id": record.id,
        "state": record.state,
        "created": record.created,
        "finished": record.finished,
        "options": record.options.model_dump(mode="json", exclude_none=True),
        "images": images,
        "disclaimer": DISCLAIMER,
    }


def as_table(record: JobRecord) -> str:
    """Return the photographs of a job as CSV, one per row."""
    summary = [name for name in AnswerSummary.model_fields if name not in ("shares", "expected_dice")]
    classes = sorted({name for item in record.items if item.answer for name in item.answer.expected_dice})
    columns = ["number", "file", "name", "source", "state", "problem", *summary]
    columns += [f"{kind}_{name}" for kind in ("share", "expected_dice") for name in classes]
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    for image in as_report(record)["images"]:
        by_class = {
            f"{kind}_{name}": value
            for kind, field in (("share", "shares"), ("expected_dice", "expected_dice"))
            for name, value in image.get(field, {}).items()
        }
        joined = {"warnings": "; ".join(image.get("warnings", [])), "unusual": " ".join(image.get("unusual", []))}
        writer.writerow(image | by_class | joined)
    return sheet.getvalue()
