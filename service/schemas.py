"""What goes over the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonValue

DISCLAIMER = "For research only; not a medical device."
ID, SPEC = "8f" * 32, "42" * 32
KEY = f"{SPEC[:16]}.{ID}"


def _example(**fields: JsonValue) -> ConfigDict:
    """OpenAPI's example of a schema."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class ClassResult(BaseModel):
    """One class of an answer."""

    id: int
    name: str
    colour: str | None = Field(description="of the overlay; none for the background")
    pixels: int = Field(description="area at native size")
    share: float = Field(description="of the field of view, 0..1")
    score: float | None = Field(description="mean probability of this class where it was chosen, 0..1")
    agreement: float | None = Field(description="mean share of voters for it where it was chosen")
    expected_dice: float | None = Field(
        default=None,
        description="Dice that the mask would have if the probabilities were true, 0..1; too high on strange cameras; "
        "null for the background, and where the class was not found",
    )


class RunLengths(BaseModel):
    """A label map row by row: ``lengths[i]`` pixels of class ``values[i]``."""

    height: int
    width: int
    values: list[int]
    lengths: list[int]


class DomainResult(BaseModel):
    """How far the photograph is from those that the model was trained on."""

    distance: float = Field(description="of its features; about 1 for the training domains")
    threshold: float = Field(description="of the distance")
    residual: float | None = Field(
        description="how badly the network guesses the photograph while inverting it, in units of its range [-1, 1]; "
        "null where the features were stored without, or made without an inversion"
    )
    residual_range: tuple[float, float] | None = Field(description="the usual residual; null where it is not judged")
    abstain: bool = Field(description="the distance is beyond its threshold, or the residual outside of its range")


class FieldOfView(BaseModel):
    """The square that the network saw, in native pixels; it may reach beyond the photograph.

    With ``fov_only`` no network sees anything: the box around the field of view.
    """

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
                    "image_id": ID, "key": KEY, "width": 1411, "height": 1411,
                    "model": "vessels", "version": "0a1b2c3d4e5f", "spec": SPEC, "timesteps": [100, 500],
                    "mirrored": False,
                    "classes": [
                        {"id": 0, "name": "background", "colour": None, "pixels": 1850000, "share": 0.89,
                         "score": 0.97, "agreement": 0.99, "expected_dice": None},
                        {"id": 1, "name": "vessel", "colour": "#1fe0ff", "pixels": 140921, "share": 0.11,
                         "score": 0.86, "agreement": 0.93, "expected_dice": 0.81},
                    ],
                    "mean_agreement": 0.985, "mean_uncertainty": 0.02,
                    "domain": {"distance": 1.1, "threshold": 1.6, "residual": 0.0058,
                               "residual_range": [0.0049, 0.0067], "abstain": False},
                    "abstain": False,
                    "field_of_view": {"top": 0, "left": 0, "height": 1411, "width": 1411},
                    "cached": False, "forwards": 4, "seconds": {"decode": 0.03, "invert": 4.8, "interpret": 1.1},
                    "mask_png": "iVBORw0KGgo=", "mask_rle": None, "masks_png": None, "masks_rle": None,
                    "by_timestep": None, "uncertainty_png": None,
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
    timesteps: list[int] = Field(description="that were read")
    mirrored: bool = Field(default=False, description="the photograph's three mirror images were read, too")
    classes: list[ClassResult]
    mean_agreement: float = Field(description="mean share of voters for the label, 0..1; 1 of models with one voter")
    mean_uncertainty: float = Field(description="mean entropy of the votes over its largest value, 0..1")
    domain: DomainResult | None = Field(description="null where the model has no statistics of its training images")
    abstain: bool | None = Field(description="whether the answer should not be relied on; null if that is not known")
    field_of_view: FieldOfView
    cached: bool = Field(description="the features, or the answer, were there already")
    forwards: int = Field(description="network forwards that were run")
    seconds: dict[str, float] = Field(description="by stage; empty for an answer that was finished already")
    mask_png: str | None = Field(
        description="base64 PNG; pixel values are class ids, of overlapping classes the last one's (mask=png)"
    )
    mask_rle: RunLengths | None = Field(description="the same as run lengths (mask=rle)")
    masks_png: dict[str, str] | None = Field(
        description="class: base64 PNG of its own pixels, 0 and 1, where classes may overlap (mask=png)"
    )
    masks_rle: dict[str, RunLengths] | None = Field(description="the same as run lengths (mask=rle)")
    by_timestep: dict[str, str] | None = Field(
        description="voter, a timestep of most models: base64 PNG of its own labels, on request"
    )
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

    model_config = _example(
        key=KEY,
        image_id=ID,
        spec=SPEC,
        timesteps=[100, 500],
        blocks=[{"name": "block_2", "shape": [2, 96, 64, 64]}],
        cached=False,
        forwards=2,
        bytes=47300000,
        models=["vessels"],
    )

    key: str
    image_id: str
    spec: str
    timesteps: list[int]
    blocks: list[BlockInfo]
    cached: bool | None = Field(default=None, description="they were there already")
    forwards: int | None = Field(default=None, description="network forwards that were run")
    bytes: int | None = Field(default=None, description="stored; of the photograph as it is, without mirror images")
    models: list[str] = Field(description="that read them")


class ModelInfo(BaseModel):
    """One model."""

    model_config = _example(
        name="vessels",
        version="0a1b2c3d4e5f",
        default=True,
        classes=["background", "vessel"],
        colours=["#1fe0ff"],
        timesteps=[100, 500],
        spec=SPEC,
        backbone="01" * 32,
        resolution=512,
        domain_threshold=2.85,
        residual_range=[0.0049, 0.0067],
        validation_dice=0.7565,
        training_images=21,
        licence="Apache-2.0",
        disclaimer=DISCLAIMER,
    )

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
    residual_range: tuple[float, float] | None = Field(
        description="residuals of the inversion outside of it do so, too; null: they are not judged"
    )
    validation_dice: float | None = Field(description="on the images that its weights were selected on, 0..1")
    training_images: int
    licence: str
    disclaimer: str = DISCLAIMER


class Ready(BaseModel):
    """The service answers; ``degraded`` if it does so without its store."""

    model_config = _example(
        status="degraded", model="vessels", spec=SPEC, models=["vessels"], store={"write": "no room left"}
    )

    status: Literal["ready", "degraded"]
    model: str
    spec: str
    models: list[str]
    store: dict[str, str] = Field(description="troubles by read, write, open; empty if there are none")


class JobProblem(BaseModel):
    """A photograph without an answer."""

    name: str
    detail: str


class JobStatus(BaseModel):
    """How far a job is."""

    model_config = _example(
        id="0f" * 16,
        state="running",
        total=120,
        done=40,
        failed=1,
        abstained=2,
        progress=0.34,
        created=1750000000.0,
        finished=None,
        problems=[{"name": "eye.png", "detail": "eye.png: damaged or truncated image"}],
        trouble=None,
        results=f"/v1/jobs/{'0f' * 16}/results",
    )

    id: str
    state: str = Field(description="queued, running, done or cancelled")
    total: int
    done: int
    failed: int
    abstained: int = Field(default=0, description="answers that should not be relied on")
    progress: float = Field(description="0..1")
    created: float = Field(description="seconds since 1970")
    finished: float | None
    problems: list[JobProblem] = Field(description="the first hundred")
    trouble: str | None = Field(description="why it does not go on at present; it is tried again every minute")
    results: str = Field(description="where the ZIP is, once the job is finished")


class Reloaded(BaseModel):
    """The models that answer from now on."""

    model_config = _example(models=["vessels"])

    models: list[str]
