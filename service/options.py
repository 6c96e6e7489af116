"""Options of a request besides the photograph: query parameters, or form fields of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.errors import BadRequest, NotFound
from store.validation import first_problem

KEY_PATTERN = r"^[0-9a-f]{16}\.[0-9a-f]{64}$"


def _split(value: Any) -> Any:
    """Return the items of comma-separated and repeated values as one list, so that both spellings mean the same."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        return [part.strip() if isinstance(part, str) else part for v in value for part in _parts(v)]
    return value


def _parts(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else [value]


class FeatureOptions(BaseModel):
    """Options of the extraction of features."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str | None = Field(
        default=None, max_length=200, description="name of a model, see /v1/models", examples=["vessels"]
    )
    mirrored: bool = Field(
        default=False,
        description="also segment the three mirror images and average the probabilities: slightly better, at four "
        "times the cost; with features alone, also store theirs",
    )


class Options(FeatureOptions):
    """Options of a segmentation."""

    output: str | None = Field(
        default=None,
        max_length=40,
        description="format of the answer: json, png, overlay, npz or dicom-seg; takes precedence over Accept",
        examples=["json"],
    )
    key: str | None = Field(
        default=None, pattern=KEY_PATTERN, description="key from /v1/features, instead of a photograph"
    )
    timesteps: Annotated[list[Annotated[int, Field(ge=0, le=1_000_000)]], BeforeValidator(_split)] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="timesteps that vote; all by default, and always for models that read all timesteps at once",
        examples=[[100, 500]],
    )
    labels: Annotated[list[str], BeforeValidator(_split)] | None = Field(
        default=None, min_length=1, max_length=100, description="classes to keep; the others become background"
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="instead of by vote, label pixels whose mean probability of a class is at least this",
        examples=[0.5],
    )
    mask: Literal["png", "rle", "none"] = Field(default="png", description="encoding of the mask in JSON")
    uncertainty: bool = Field(default=False, description="add the map of disagreement between voters to JSON and NPZ")
    by_timestep: bool = Field(
        default=False, description="add the labels of each voter, a timestep in most models, to JSON and NPZ"
    )
    opacity: float = Field(default=0.55, ge=0, le=1, description="opacity of the colours in the overlay")
    fov_only: bool = Field(default=False, description="find only the field of view; no network is run")

    def require_classes(self, classes: Sequence[str]) -> None:
        """Raise NotFound unless the requested labels are all among a model's classes."""
        if unknown := sorted(set(self.labels or ()) - set(classes)):
            raise NotFound(f"no class {', '.join(map(repr, unknown))} in this model; it has {', '.join(classes)}")


OptionsT = TypeVar("OptionsT", bound=FeatureOptions)


def merge_options(options: OptionsT, fields: Mapping[str, Any]) -> OptionsT:
    """Options from query parameters and form fields together; form fields take precedence.

    Raises:
        BadRequest: a form field is invalid.
    """
    if not fields:
        return options
    try:
        return type(options).model_validate(options.model_dump(exclude_unset=True) | dict(fields))
    except ValidationError as error:
        raise BadRequest(first_problem(error)) from error
