"""The settings of a training, whose defaults are the paper's values, and the record kept with the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreter.rules import Rules
from store.views import IDENTITY


class TrainingBudget(BaseModel):
    """The length and steps of a training, which all trainings of a comparison share.

    Attributes:
        batch: batch size, over all processes.
        epochs: number of epochs; each shows every image once.
        steps: batches in the whole training, rounded up to whole epochs; takes precedence over ``epochs``.
        crop: side of the random windows to train on, in pixels of the network's square; None trains on all of it.
        foreground: share of these windows that are centred on a pixel of a class, drawn from the classes of the image.
        learning_rate: initial learning rate.
        decay: schedule of the learning rate over the whole training.
        evaluate_every: epochs between validations.
        patience: validations without improvement before training stops; None trains to the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(default=4, gt=0)
    epochs: int = Field(default=100, gt=0)
    steps: int | None = Field(default=None, gt=0)
    crop: int | None = Field(default=None, gt=0)
    foreground: float = Field(default=0, ge=0, le=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    decay: Literal["none", "cosine"] = "none"
    evaluate_every: int = Field(default=5, gt=0)
    patience: int | None = Field(default=None, gt=0)


class TrainingSettings(TrainingBudget):
    """All settings of a training.

    Attributes:
        accumulate: batches whose gradients are accumulated before the weights change.
        precision: precision of the arithmetic; the selective scan and the losses are always float32.
        flips: flip maps and ground truth at random.
        views: views that are drawn from, one for each image and epoch.
        labels: use only this many of the images, drawn by seed, for training and the validation split off from them.
        validation_share: share of the images split off for validation, if no validation images are given.
        seed: decides everything that is drawn.
    """

    accumulate: int = Field(default=1, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    flips: bool = True
    views: tuple[str, ...] = Field(default=(IDENTITY,), min_length=1)
    labels: int | None = Field(default=None, gt=0)
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    seed: int = 0


class PseudoLabelled(BaseModel):
    """Unlabelled photographs that were learnt from by another interpreter's segmentations.

    Attributes:
        teacher: sha256 of that interpreter's files (``interpreter.pseudo_labels``).
        images: ids of the photographs.
        teacher_images: ids of the images that the teacher was trained or selected on, as far as they are recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    images: tuple[str, ...]
    teacher_images: tuple[str, ...] = ()


class AdaptedTo(BaseModel):
    """The unlabelled photographs by which an interpreter's resolution was chosen (``interpreter.adapting``).

    Attributes:
        photographs: number of photographs.
        expected_dice: {resolution: Dice that the interpreter expected of itself there}, 0..1; None if it
            found nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photographs: int = Field(gt=0)
    expected_dice: dict[str, float | None]


class TrainingRecord(TrainingSettings):
    """The record of how an interpreter was trained.

    Attributes:
        rules: how the ground truth was made, and which pixels counted.
        pseudo_labels: unlabelled photographs that it learnt from; None if there were none.
        adapted_to: photographs of the camera that this copy was adapted to, without training; None if it was not.
    """

    model_config = ConfigDict(extra="ignore")  # other versions have other settings

    rules: Rules = Rules()
    pseudo_labels: PseudoLabelled | None = None
    adapted_to: AdaptedTo | None = None
