"""The settings of a training, whose defaults are the paper's values, and what is kept of them beside the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreter.rules import Rules
from store.views import IDENTITY


class TrainingBudget(BaseModel):
    """Length and steps of a training: the same in all trainings of a comparison.

    Attributes:
        batch: images in a batch, over all processes.
        epochs: each shows every image once.
        steps: batches of the whole training, which ends with the epoch that reaches them; goes before ``epochs``.
        crop: train on random windows of so many pixels of the network's square; None takes it whole.
        foreground: share of these windows that are centred on a pixel of a class, drawn from the classes of the image.
        decay: of the learning rate, over the whole training.
        evaluate_every: epochs between validations.
        patience: validations without gain before stopping; None goes to the end.
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
    """One training.

    Attributes:
        accumulate: batches whose gradients are added up before a step.
        precision: of the arithmetic; the selective scan and the losses are float32 always.
        flips: flip cached maps at random.
        views: renderings of each image, drawn from.
        labels: train on so many of the images, drawn by seed; those kept for validation count.
    """

    accumulate: int = Field(default=1, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    flips: bool = True
    views: tuple[str, ...] = Field(default=(IDENTITY,), min_length=1)
    labels: int | None = Field(default=None, gt=0)
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    seed: int = 0


class PseudoLabelled(BaseModel):
    """Photographs that were learnt from by what another interpreter made of them.

    Attributes:
        teacher: sha256 of the interpreter's files (``interpreter.pseudo_labels``).
        images: image ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    images: tuple[str, ...]


class AdaptedTo(BaseModel):
    """Photographs without labels that said at which resolution an interpreter reads them.

    Attributes:
        photographs: how many.
        expected_dice: {resolution: Dice that the interpreter expected of itself there}, 0..1; None where it
            found nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photographs: int = Field(gt=0)
    expected_dice: dict[str, float | None]


class TrainingRecord(TrainingSettings):
    """How an interpreter came about.

    Attributes:
        rules: how the truth was made, and which pixels counted.
        pseudo_labels: photographs that it learnt from without labels.
        adapted_to: the camera that a copy of it was adapted to, without training.
    """

    model_config = ConfigDict(extra="ignore")  # settings that other versions had

    rules: Rules = Rules()
    pseudo_labels: PseudoLabelled | None = None
    adapted_to: AdaptedTo | None = None
