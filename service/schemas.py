"""Schemas of the JSON that the API answers with; FastAPI builds the OpenAPI description from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonValue

DISCLAIMER = "For research only; not a medical device."
ID, SPEC = "8f" * 32, "42" * 32
KEY = f"{SPEC[:16]}.{ID}"


def _example(**fields: JsonValue) -> ConfigDict:
    """Return the configuration that gives a schema its example in OpenAPI."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class ClassResult(BaseModel):
    """One class of an answer."""

    id: int
    name: str
    colour: str | None = Field(description="colour in the overlay, #rrggbb; null for the background")
    pixels: int = Field(
        description="area in pixels of the photograph; the background's includes what lies outside the field of view"
    )
    share: float = Field(description="fraction of the field of view, 0..1")
    score: float | None = Field(
        description="mean probability of this class over the pixels where it was chosen, 0..1; null if there are none"
    )
    agreement: float | None = Field(
        description="mean fraction of voters for this class over the same pixels, 0..1; null if there are none"
    )
    expected_dice: float | None = Field(
        default=None,
        description="Dice that the mask would have if the probabilities were calibrated, 0..1; too high on cameras "
        "that the model was not trained on; null for the background, and if the class was not found",
    )


class RunLengths(BaseModel):
    """A label map in row-major order: ``lengths[i]`` consecutive pixels of class ``values[i]``."""

    height: int
    width: int
    values: list[int]
    lengths: list[int]


class DomainResult(BaseModel):
    """How far the photograph is from the training images of the model."""

    distance: float = Field(
        description="distance of its features from those of the training images; about 1 for photographs like them"
    )
    threshold: float = Field(description="largest distance that is considered normal")
    residual: float | None = Field(
        description="root mean square error of the network's estimate of the photograph during the inversion, in units "
        "of the network's range [-1, 1]; null if it was not stored with the features, or no inversion was run"
    )
    residual_range: tuple[float, float] | None = Field(
        description="range of normal residuals; null if the model does not judge them"
    )
    abstain: bool = Field(description="true if the distance exceeds its threshold or the residual is outside its range")


class FieldOfView(BaseModel):
    """The square that was given to the network, in pixels of the photograph; it may extend beyond its borders.

    With ``fov_only`` no network is run, and this is the bounding box of the field of view.
    """

    top: int
    left: int
    height: int
    width: int


class SegmentResponse(BaseModel):
    """The segmentation of one photograph."""

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
                    "domain": {"distance": 1.1, "threshold": 2.15, "residual": 0.0258,
                               "residual_range": [0.0221, 0.0325], "abstain": False},
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
    key: str | None = Field(
        description="key of its features, to use instead of the photograph from now on; null with fov_only"
    )
    width: int
    height: int
    model: str
    version: str = Field(description="version of the model's files")
    spec: str = Field(description="digest of the spec of the features that were read; empty with fov_only")
    timesteps: list[int] = Field(description="timesteps whose features were read")
    mirrored: bool = Field(default=False, description="true if the photograph's three mirror images were read as well")
    classes: list[ClassResult]
    mean_agreement: float = Field(
        description="mean fraction of voters for the chosen label, 0..1; 1 for models with one voter"
    )
    mean_uncertainty: float = Field(description="mean entropy of the votes divided by its maximum, 0..1")
    domain: DomainResult | None = Field(description="null if the model has no statistics of its training images")
    abstain: bool | None = Field(description="true if the answer should not be relied on; null if that is not known")
    field_of_view: FieldOfView
    cached: bool = Field(description="true if the features, or the whole answer, came from the cache")
    forwards: int = Field(description="number of forward passes of the diffusion network")
    seconds: dict[str, float] = Field(description="time spent in each stage; empty for an answer from the cache")
    mask_png: str | None = Field(
        description="base64 PNG of class ids; where classes overlap, the id of the last one (mask=png)"
    )
    mask_rle: RunLengths | None = Field(description="the same label map as run lengths (mask=rle)")
    masks_png: dict[str, str] | None = Field(
        description="{class: base64 PNG of its own mask, 0 and 1}, for models whose classes may overlap (mask=png)"
    )
    masks_rle: dict[str, RunLengths] | None = Field(description="the same masks as run lengths (mask=rle)")
    by_timestep: dict[str, str] | None = Field(
        description="{voter: base64 PNG of its own labels}; in most models timesteps vote (by_timestep=true)"
    )
    uncertainty_png: str | None = Field(
        description="base64 grey PNG, 255 where the votes are split evenly (uncertainty=true)"
    )
    warnings: list[str]
    disclaimer: str = DISCLAIMER


class Problem(BaseModel):
    """An error: the reason why the request was not answered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "damaged image"}]})

    detail: str


class BlockInfo(BaseModel):
    """One block of the network whose feature maps are stored."""

    name: str
    shape: list[int] = Field(description="(timesteps, channels, height, width)")


class FeaturesInfo(BaseModel):
    """The stored features of one photograph."""

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
    cached: bool | None = Field(
        default=None, description="true if the features were in the store already; only in the answer to POST"
    )
    forwards: int | None = Field(
        default=None, description="number of forward passes of the diffusion network; only in the answer to POST"
    )
    bytes: int | None = Field(default=None, description="size in the store, without the features of the mirror images")
    models: list[str] = Field(description="names of the models that read these features")


class ModelInfo(BaseModel):
    """A model that the service offers."""

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
        domain_threshold=2.15,
        residual_range=[0.0221, 0.0325],
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
    domain_threshold: float | None = Field(
        description="the service advises to abstain at larger distances; null if the model has no statistics"
    )
    residual_range: tuple[float, float] | None = Field(
        description="the service advises to abstain if the inversion's residual is outside; null if it is not judged"
    )
    validation_dice: float | None = Field(
        description="Dice on the validation images that its weights were selected on, 0..1"
    )
    training_images: int
    licence: str
    disclaimer: str = DISCLAIMER


class Ready(BaseModel):
    """The service is ready; ``degraded`` if its feature store or the storage of its jobs is in trouble."""

    model_config = _example(
        status="degraded", model="vessels", spec=SPEC, models=["vessels"], store={"write": "no room left"}, jobs=None
    )

    status: Literal["ready", "degraded"]
    model: str
    spec: str
    models: list[str]
    store: dict[str, str] = Field(
        description="what is wrong with the feature store, by operation (read, write, open); empty if nothing is"
    )
    jobs: str | None = Field(description="what is wrong with the storage of jobs; null if nothing is")


class JobProblem(BaseModel):
    """A photograph of a job that could not be segmented."""

    number: int = Field(description="its place in the job, from 0, with which its file in the ZIP would begin")
    name: str
    source: str | None = Field(default=None, description="NAME/KEY of a photograph in a folder")
    detail: str


class JobStatus(BaseModel):
    """The state and progress of a job."""

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
        problems=[
            {
                "number": 7,
                "name": "eye.png",
                "source": "clinic/eye.png",
                "detail": "eye.png: damaged or truncated image",
            }
        ],
        trouble=None,
        results=f"/v1/jobs/{'0f' * 16}/results",
    )

    id: str
    state: str = Field(description="queued, running, done or cancelled")
    total: int
    done: int
    failed: int
    abstained: int = Field(default=0, description="number of answers that should not be relied on")
    progress: float = Field(description="fraction of the photographs that are done or failed, 0..1")
    created: float = Field(description="Unix time in seconds")
    finished: float | None
    problems: list[JobProblem] = Field(
        description="the first hundred of the photographs that failed, with the reasons; the ZIP has all"
    )
    trouble: str | None = Field(description="why the job is paused; it is tried again, less and less often")
    results: str = Field(description="path of the ZIP of results, once the job is finished")


class Reloaded(BaseModel):
    """The names of the models after a reload."""

    model_config = _example(models=["vessels"])

    models: list[str]
