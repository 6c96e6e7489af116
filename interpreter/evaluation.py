"""Scores of an interpreter on labelled images, at the network's size inside the field of view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from interpreter.data import Labelled, native_truth, network_truth
from interpreter.metrics import Counts, bootstrap_interval, count
from interpreter.network import Interpreter
from interpreter.prediction import Prediction, segment
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.spec import FeatureSpec

OnImage = Callable[[Labelled, Prediction, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; class 1 first.

    Attributes:
        voted: for each class but the background.
        by_timestep: {t: Dice averaged over these classes}.
    """

    name: str
    voted: tuple[Counts, ...]
    by_timestep: dict[int, float]

    @property
    def dice(self) -> float:
        """Mean over the classes."""
        return float(np.mean([counts.dice for counts in self.voted]))


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images."""

    images: list[ImageScores] = field(default_factory=list)

    @property
    def mean_dice(self) -> float:
        """Mean over images of the voted Dice, 0..1."""
        return float(np.mean([image.dice for image in self.images]))

    def by_timestep(self) -> dict[int, float]:
        """Mean over images of each timestep's own Dice."""
        return {t: float(np.mean([image.by_timestep[t] for image in self.images])) for t in self.images[0].by_timestep}

    def pooled(self) -> Counts:
        """The confusion matrix of class 1 over all images."""
        return sum((image.voted[0] for image in self.images[1:]), self.images[0].voted[0])

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of ``mean_dice`` over images."""
        return bootstrap_interval(np.array([image.dice for image in self.images]))

    def summary(self) -> dict[str, object]:
        """Everything as plain numbers, Dice in points of 100."""
        low, high = self.interval()
        pooled = self.pooled()
        return {
            "images": len(self.images),
            "dice": 100 * self.mean_dice,
            "dice_interval_95": [100 * low, 100 * high],
            "dice_by_timestep": {str(t): 100 * dice for t, dice in self.by_timestep().items()},
            "pooled_dice": 100 * pooled.dice,
            "iou": 100 * pooled.iou,
            "sensitivity": 100 * pooled.sensitivity,
            "specificity": 100 * pooled.specificity,
            "by_image": {image.name: round(100 * image.dice, 3) for image in self.images},
        }


def evaluate(
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    task: Task,
    images: Sequence[Labelled],
    on_image: OnImage | None = None,
) -> Scores:
    """Segment every image and compare with its masks.

    Args:
        on_image: called with each image, its prediction and its native label map (H, W).
    """
    interpreter.spec.require(spec)
    scores = Scores()
    for image in images:
        entry = store.entry(spec, image.key)
        features = entry.features()
        prediction, native = segment(interpreter, features)
        truth = network_truth(entry, native_truth(store, image, task))
        scores.images.append(_score(image.name, prediction, truth, features.fov, spec, task))
        if on_image is not None:
            on_image(image, prediction, native)
    return scores


def _score(
    name: str,
    prediction: Prediction,
    truth: NDArray[np.uint8],
    fov: NDArray[np.bool_],
    spec: FeatureSpec,
    task: Task,
) -> ImageScores:
    classes = range(1, len(task.classes))
    voted = tuple(count(prediction.labels == c, truth == c, fov) for c in classes)
    by_timestep = {
        t: float(np.mean([count(labels == c, truth == c, fov).dice for c in classes]))
        for t, labels in zip(spec.timesteps, prediction.by_timestep, strict=True)
    }
    return ImageScores(name, voted, by_timestep)
