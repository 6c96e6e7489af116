"""What goes over the wire."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from interpreter.rendering import encode_labels, encode_picture
from service.answers import Answer
from service.options import Options
from store.geometry import Interpolation

DISCLAIMER = "For research only; not a medical device."


class ClassResult(BaseModel):
    """One class of an answer."""

    id: int
    name: str
    colour: str | None = Field(description="of the overlay; none for the background")
    pixels: int = Field(description="area at native size")
    share: float = Field(description="of the field of view, 0..1")
    score: float | None = Field(description="mean probability of this class where it was chosen, 0..1")
    agreement: float | None = Field(description="mean share of timesteps that voted for it where it was chosen")


class RunLengths(BaseModel):
    """A label map row by row: ``lengths[i]`` pixels of class ``values[i]``."""

    height: int
    width: int
    values: list[int]
    lengths: list[int]


class DomainResult(BaseModel):
    """How far the photograph is from those that the model was trained on."""

    distance: float = Field(description="about 1 for the training domains")
    threshold: float
    abstain: bool


class FieldOfView(BaseModel):
    """The square that the network saw, in native pixels; it may reach beyond the photograph."""

    top: int
    left: int
    height: int
    width: int


class SegmentResponse(BaseModel):
    """A segmented photograph."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image_id": "8f" * 32, "key": "42d1c2ae8e0ab0c1." + "8f" * 32, "width": 1411, "height": 1411,
                    "model": "vessels", "version": "0a1b2c3d4e5f", "spec": "42" * 32, "timesteps": [1, 10, 100, 500],
                    "classes": [
                        {"id": 0, "name": "background", "colour": None, "pixels": 1850000, "share": 0.89,
                         "score": 0.97, "agreement": 0.99},
                        {"id": 1, "name": "vessel", "colour": "#1fe0ff", "pixels": 140921, "share": 0.11,
                         "score": 0.86, "agreement": 0.93},
                    ],
                    "mean_agreement": 0.985, "mean_uncertainty": 0.02,
                    "domain": {"distance": 1.1, "threshold": 1.6, "abstain": False}, "abstain": False,
                    "field_of_view": {"top": 0, "left": 0, "height": 1411, "width": 1411},
                    "cached": False, "forwards": 4, "seconds": {"decode": 0.03, "invert": 4.8, "interpret": 1.1},
                    "mask_png": "iVBORw0KGgo=", "mask_rle": None, "by_timestep": None, "uncertainty_png": None,
                    "warnings": [], "disclaimer": DISCLAIMER,
                }
            ]
        }
    )  # fmt: skip

    image_id: str = Field(description="sha256 of the uploaded bytes")
    key: str | None = Field(description="of its features: for /v1/features, and to ask again without the photograph")
    width: int
    height: int
    model: str
    version: str = Field(description="of the model's files")
    spec: str = Field(description="digest of the features that were read")
    timesteps: list[int] = Field(description="that voted")
    classes: list[ClassResult]
    mean_agreement: float = Field(description="mean share of timesteps that voted for the label, 0..1")
    mean_uncertainty: float = Field(description="mean entropy of the votes over its largest value, 0..1")
    domain: DomainResult | None = Field(description="null where the model has no statistics of its training images")
    abstain: bool | None = Field(description="whether the answer should not be relied on; null if that is not known")
    field_of_view: FieldOfView
    cached: bool = Field(description="the features, or the answer, were there already")
    forwards: int = Field(description="network forwards that were run")
    seconds: dict[str, float] = Field(description="by stage; empty for an answer that was finished already")
    mask_png: str | None = Field(description="base64 PNG; pixel values are class ids (mask=png)")
    mask_rle: RunLengths | None = Field(description="the same as run lengths (mask=rle)")
    by_timestep: dict[str, str] | None = Field(description="timestep: base64 PNG of its own labels, on request")
    uncertainty_png: str | None = Field(description="base64 grey PNG, 255 where the votes are split evenly, on request")
    warnings: list[str]
    disclaimer: str = DISCLAIMER


class Problem(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "eye.png: damaged or truncated image"}]})

    detail: str


class BlockInfo(BaseModel):
    """One block of features."""

    name: str
    shape: list[int] = Field(description="(t, c, h, w)")


class FeaturesInfo(BaseModel):
    """Features of one photograph."""

    key: str
    image_id: str
    spec: str
    timesteps: list[int]
    blocks: list[BlockInfo]
    cached: bool | None = Field(default=None, description="they were there already")
    forwards: int | None = Field(default=None, description="network forwards that were run")
    bytes: int | None = Field(default=None, description="stored")
    models: list[str] = Field(description="that read them")


class ModelInfo(BaseModel):
    """One model."""

    name: str
    version: str
    default: bool
    classes: list[str]
    colours: list[str]
    timesteps: list[int]
    spec: str
    backbone: str
    resolution: int
    domain_threshold: float | None = Field(description="distances beyond it advise to abstain; null without statistics")
    metrics: dict[str, float]
    training_images: int
    licence: str
    disclaimer: str = DISCLAIMER


class Ready(BaseModel):
    """The service answers; ``degraded`` if it does so without its store."""

    status: Literal["ready", "degraded"]
    model: str
    spec: str
    models: list[str]
    store: dict[str, str] = Field(description="troubles by read, write, open; empty if there are none")


def to_response(answer: Answer, options: Options) -> SegmentResponse:
    """The JSON form of an answer."""
    height, width = answer.labels.shape
    g, domain, fov = answer.geometry, answer.domain, answer.fov
    mask = options.mask
    return SegmentResponse(
        image_id=answer.image_id,
        key=answer.key,
        width=width,
        height=height,
        model=answer.model,
        version=answer.version,
        spec=answer.spec,
        timesteps=list(answer.timesteps),
        classes=_classes(answer),
        mean_agreement=answer.mean_agreement,
        mean_uncertainty=float(answer.uncertainty[fov].mean()),
        domain=None if domain is None else DomainResult(
            distance=domain.distance, threshold=domain.threshold, abstain=domain.abstain
        ),
        abstain=None if domain is None else domain.abstain,
        field_of_view=FieldOfView(top=g.top, left=g.left, height=g.box_height, width=g.box_width),
        cached=answer.cached,
        forwards=answer.forwards,
        seconds={stage: round(seconds, 4) for stage, seconds in answer.seconds.items()},
        mask_png=_base64(encode_labels(answer.labels, answer.colours)) if mask == "png" else None,
        mask_rle=run_lengths(answer.labels) if mask == "rle" else None,
        by_timestep=_by_timestep(answer) if options.by_timestep else None,
        uncertainty_png=_uncertainty(answer) if options.uncertainty else None,
        warnings=list(answer.warnings),
    )  # fmt: skip


def run_lengths(labels: NDArray[np.uint8]) -> RunLengths:
    """A label map (H, W) as run lengths, row by row."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    height, width = labels.shape
    return RunLengths(height=height, width=width, values=flat[starts].tolist(), lengths=lengths.tolist())


def _classes(answer: Answer) -> list[ClassResult]:
    count, colours, fov = len(answer.classes), answer.colours, answer.fov
    pixels = np.bincount(answer.labels.ravel(), minlength=count)
    chosen, agreement = answer.prediction.labels[fov], answer.agreement[fov]
    results = []
    for i, name in enumerate(answer.classes):
        here = chosen == i
        some = bool(here.any())
        results.append(
            ClassResult(
                id=i,
                name=name,
                colour=colours[(i - 1) % len(colours)] if i else None,
                pixels=int(pixels[i]),
                share=float(here.mean()),
                score=float(answer.prediction.probabilities[i][fov][here].mean()) if some else None,
                agreement=float(agreement[here].mean()) if some else None,
            )
        )
    return results


def _by_timestep(answer: Answer) -> dict[str, str]:
    masks = {}
    for t, labels in zip(answer.timesteps, answer.prediction.by_timestep, strict=True):
        native = answer.native_map(labels, Interpolation.NEAREST).astype(np.uint8)
        masks[str(t)] = _base64(encode_labels(native, answer.colours))
    return masks


def _uncertainty(answer: Answer) -> str:
    native = answer.native_map(answer.uncertainty, Interpolation.LINEAR)
    return _base64(encode_picture((255 * native).clip(0, 255).round().astype(np.uint8)))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
