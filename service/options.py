"""What a request may ask for besides the photograph: query parameters, or form fields of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.errors import BadRequest, NotFound

if TYPE_CHECKING:  # loading torch takes seconds; clients do without
    from service.answers import Answer

KEY_PATTERN = r"^[0-9a-f]{16}\.[0-9a-f]{64}$"


def _split(value: Any) -> Any:
    """``1,10`` and repeated parameters mean the same."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        return [part.strip() if isinstance(part, str) else part for v in value for part in _parts(v)]
    return value


def _parts(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else [value]


class Options(BaseModel):
    """Options of a segmentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    output: str | None = Field(
        default=None,
        max_length=40,
        description="json, png, overlay, npz, dicom-seg; goes before Accept",
        examples=["json"],
    )
    model: str | None = Field(default=None, max_length=200, description="of /v1/models", examples=["vessels"])
    key: str | None = Field(default=None, pattern=KEY_PATTERN, description="of /v1/features, instead of a photograph")
    timesteps: Annotated[list[Annotated[int, Field(ge=0, le=1_000_000)]], BeforeValidator(_split)] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="that vote; all of the model's by default, and always of models that read all at once",
        examples=[[1, 10]],
    )
    mirrored: bool = Field(
        default=False,
        description="read the photograph's three mirror images as well and average: a little better, for four times "
        "the work",
    )
    labels: Annotated[list[str], BeforeValidator(_split)] | None = Field(
        default=None, min_length=1, max_length=100, description="classes to keep; the others become background"
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="of the mean probability, instead of the vote", examples=[0.5]
    )
    mask: Literal["png", "rle", "none"] = Field(default="png", description="how JSON carries the mask")
    uncertainty: bool = Field(default=False, description="JSON and NPZ carry the map of disagreement")
    by_timestep: bool = Field(
        default=False, description="JSON and NPZ carry each voter's own labels, a timestep's in most models"
    )
    opacity: float = Field(default=0.55, ge=0, le=1, description="of the overlay's colours")
    fov_only: bool = Field(default=False, description="the field of view alone; no network is run")

    def require_classes(self, classes: Sequence[str]) -> None:
        """NotFound unless the labels that are asked for are among a model's classes."""
        if unknown := sorted(set(self.labels or ()) - set(classes)):
            raise NotFound(f"no class {', '.join(unknown)} in this model; it has {', '.join(classes)}")

    def applied(self, answer: Answer) -> Answer:
        """The answer with the labels that threshold and classes leave.

        Raises:
            NotFound: no such class.
        """
        from service.answers import at_threshold, of_classes

        self.require_classes(answer.classes)
        if self.threshold is not None:
            answer = at_threshold(answer, self.threshold)
        return answer if self.labels is None else of_classes(answer, self.labels)


def merged(options: Options, fields: Mapping[str, Any]) -> Options:
    """Query parameters and form fields as one; the fields go first.

    Raises:
        BadRequest: an invalid field.
    """
    if not fields:
        return options
    try:
        return Options.model_validate(options.model_dump(exclude_unset=True) | dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
