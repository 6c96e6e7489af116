"""What is kept of a job, and what its owner is told of it."""

from __future__ import annotations

import csv
import io
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from service.answers import Answer
from service.options import Options
from service.schemas import DISCLAIMER

State = Literal["queued", "running", "done", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "cancelled")


class AnswerSummary(BaseModel):
    """What an answer says about itself, whatever format it is written in."""

    image_id: str
    model: str
    version: str
    spec: str
    abstain: bool | None
    distance: float | None
    residual: float | None
    expected_dice: dict[str, float | None] = Field(default_factory=dict, description="of each class")
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
            abstain=None if score is None else score.abstain,
            distance=None if score is None else score.distance,
            residual=None if score is None else score.residual,
            expected_dice=answer.expected_dice,
            warnings=answer.warnings,
        )


class JobItem(BaseModel):
    """One photograph of a job.

    Attributes:
        source: NAME/KEY of a folder that the operator allowed; None for an upload.
        begun_by: runs of the service that began it, and neither ended it nor gave it back: they were stopped meanwhile.
        failures: times that it failed in an unexpected way.
        answer: what it says about itself.
    """

    name: str
    state: Literal["waiting", "done", "failed"] = "waiting"
    problem: str | None = Field(default=None, description="why there is no answer")
    source: str | None = None
    bytes: int = Field(default=0, description="of the photograph, while it is kept")
    begun_by: tuple[str, ...] = ()
    failures: int = 0
    answer: AnswerSummary | None = Field(default=None, validation_alias=AliasChoices("answer", "told"))  # once `told`

    def troubles_before(self, run: str) -> int:
        """Times that it failed or stopped another run of the service."""
        return self.failures + len(set(self.begun_by) - {run})


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
    result_bytes: int = Field(default=0, description="of results")

    @property
    def bytes(self) -> int:
        """All that is kept of it."""
        return self.result_bytes + sum(item.bytes for item in self.items)

    def count(self, state: str) -> int:
        """Photographs in a state."""
        return sum(item.state == state for item in self.items)

    def end_as_cancelled(self, finished: float) -> None:
        """Nothing more is done of it, and its photographs are gone."""
        self.state, self.finished = "cancelled", finished
        for item in self.items:
            item.bytes = 0

    def file_of(self, number: int) -> str | None:
        """What the answer to a photograph is called in the ZIP; None where there is none."""
        item = self.items[number]
        if item.state != "done":
            return None
        return f"{number:05d}_{item.name.rsplit('.', 1)[0] or 'image'}{self.suffix}"


def as_report(record: JobRecord) -> dict[str, Any]:
    """What a job was and what each of its answers says about itself, as JSON."""
    images = [
        item.model_dump(exclude={"bytes", "begun_by", "failures", "answer"})
        | {"file": record.file_of(i)}
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
    """The photographs of a job as CSV, one in a row."""
    summary = [name for name in AnswerSummary.model_fields if name != "expected_dice"]
    classes = sorted({name for item in record.items if item.answer for name in item.answer.expected_dice})
    columns = ["file", "name", "source", "state", "problem", *summary, *(f"expected_dice_{name}" for name in classes)]
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    for image in as_report(record)["images"]:
        expected = {f"expected_dice_{name}": dice for name, dice in image.get("expected_dice", {}).items()}
        writer.writerow(image | expected | {"warnings": "; ".join(image.get("warnings", []))})
    return sheet.getvalue()
