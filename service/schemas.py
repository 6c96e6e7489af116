"""What goes over the wire."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from interpreter.rendering import encode_labels
from service.engine import Answer
from store.spec import FeatureSpec

DISCLAIMER = "For research only; not a medical device."


class ClassResult(BaseModel):
    """One class of an answer."""

    id: int
    name: str
    colour: str | None = Field(description="of the overlay; none for the background")
    pixels: int = Field(description="at native size")
    share: float = Field(description="of the field of view, 0..1")


class SegmentResponse(BaseModel):
    """A segmented photograph."""

    image_id: str = Field(description="sha256 of the uploaded bytes")
    width: int
    height: int
    model: str
    spec: str = Field(description="digest of the features that were read")
    classes: list[ClassResult]
    mean_agreement: float = Field(description="mean share of timesteps that voted for the label, 0..1")
    cached: bool = Field(description="the features were in the store already")
    forwards: int = Field(description="network forwards that were run")
    seconds: dict[str, float] = Field(description="by stage")
    mask_png: str = Field(description="base64 PNG; pixel values are class ids")
    warnings: list[str]
    disclaimer: str = DISCLAIMER


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


def to_response(
    answer: Answer, model: str, spec: FeatureSpec, classes: Sequence[str], colours: Sequence[str]
) -> SegmentResponse:
    """The JSON form of an answer."""
    height, width = answer.labels.shape
    counts = np.bincount(answer.labels.ravel(), minlength=len(classes))
    inside = max(1, int(np.count_nonzero(answer.fov)))
    at_network = np.bincount(answer.prediction.labels[answer.fov], minlength=len(classes)) / inside
    return SegmentResponse(
        image_id=answer.image_id,
        width=width,
        height=height,
        model=model,
        spec=spec.digest,
        classes=[
            ClassResult(
                id=i,
                name=name,
                colour=colours[(i - 1) % len(colours)] if i else None,
                pixels=int(counts[i]),
                share=float(at_network[i]),
            )
            for i, name in enumerate(classes)
        ],
        mean_agreement=answer.mean_agreement,
        cached=answer.cached,
        forwards=answer.forwards,
        seconds={stage: round(seconds, 4) for stage, seconds in answer.seconds.items()},
        mask_png=base64.b64encode(encode_labels(answer.labels, colours)).decode(),
        warnings=list(answer.warnings),
    )
