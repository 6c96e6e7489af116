"""Scores of an interpreter on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from interpreter.curves import PooledPixels, Reliability
from interpreter.data import LabelledImage, native_truth
from interpreter.errors import DataError
from interpreter.expected import expected_of
from interpreter.metrics import Counts, bootstrap_interval, count, finite_or_none, hd95, mean_of_known
from interpreter.network import Interpreter
from interpreter.prediction import Segmentation, native_probabilities
from interpreter.rules import STRICT, Rules, Size
from interpreter.splits import group_of
from interpreter.stored import segment_stored
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.geometry import Geometry
from store.spec import FeatureSpec


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; tuples have one item for each scored class, class 1 first.

    Attributes:
        voted: confusion matrix of the voted mask; None if it is not known where the class is in this image.
        hd95: in pixels; nan where ``voted`` is None, and where only one of the two masks is empty.
        by_voter: {voter: Dice of its own mask of each class}, at the network's size; nan where ``voted`` is None.
        expected: the Dice that the interpreter expects of its mask, without labels (``interpreter.expected``), at the
            network's size inside the field of view; nan where it finds nothing, and where ``voted`` is None.
        group: what images that are not independent share, such as a patient; None for an image by itself.
    """

    name: str
    voted: tuple[Counts | None, ...]
    hd95: tuple[float, ...]
    by_voter: dict[str, tuple[float, ...]]
    expected: tuple[float, ...]
    group: str | None = None

    @property
    def cluster(self) -> tuple[str, str]:
        """What is resampled together for confidence intervals (``cluster_of``)."""
        return cluster_of(self.name, self.group)

    @property
    def dice(self) -> float:
        """Mean Dice over the classes that are known."""
        return float(np.mean([counts.dice for counts in self.voted if counts is not None]))

    @property
    def expected_dice(self) -> float:
        """Mean expected Dice over the classes that were found; nan if none was."""
        return mean_of_known(self.expected)


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images.

    Attributes:
        classes: names of the scored classes, without the background.
        images: scores of each image, in the order in which they were scored.
        pixels, reliability: one for each class, pooled over all images.
    """

    classes: tuple[str, ...]
    images: list[ImageScores] = field(default_factory=list)
    pixels: list[PooledPixels] = field(default_factory=list)
    reliability: list[Reliability] = field(default_factory=list)

    @property
    def mean_dice(self) -> float:
        """Mean over classes of the mean Dice of the images in which it is known where the class is, 0..1."""
        return float(np.mean([self._mean_dice_of(index) for index in range(len(self.classes))]))

    def _mean_dice_of(self, index: int) -> float:
        return float(np.mean([counts.dice for counts in self._counts(index)]))

    def criterion(self, *, overlapping: bool) -> float:
        """The figure by which interpreters are compared on the same images, 0..1; the higher the better.

        It is the mean Dice. If classes overlap, it is the mean over classes of the average precision over all pixels
        (mean Dice again if no class has a pixel): many images then lack a class, and for those Dice would reward an
        interpreter that never finds anything.
        """
        precision = mean_of_known(pixels.average_precision() for pixels in self.pixels) if overlapping else math.nan
        return self.mean_dice if math.isnan(precision) else precision

    def dice_by_voter(self) -> dict[str, float]:
        """Each voter's own Dice, averaged as in ``mean_dice``."""
        by_class = [self.class_dice_by_voter(index) for index in range(len(self.classes))]
        return {voter: float(np.mean([of[voter] for of in by_class])) for voter in by_class[0]}

    def class_dice_by_voter(self, index: int) -> dict[str, float]:
        """Each voter's own mean Dice of one class, over the images in which it is known where the class is."""
        voters = self.images[0].by_voter
        return {voter: mean_of_known(image.by_voter[voter][index] for image in self.images) for voter in voters}

    def pooled(self, index: int = 0) -> Counts:
        """The confusion matrix of a class over all images."""
        return sum(self._counts(index), Counts(0, 0, 0, 0))

    def images_of(self, index: int) -> int:
        """The number of images in which it is known where a class is."""
        return len(self._counts(index))

    def _counts(self, index: int) -> list[Counts]:
        """A class's confusion matrix in each image in which it is known where the class is."""
        return [counts for image in self.images if (counts := image.voted[index]) is not None]

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap confidence interval of ``mean_dice``, over groups of images; (nan, nan) for a single one."""
        of_each = [[math.nan if one is None else one.dice for one in image.voted] for image in self.images]
        return bootstrap_interval(np.array(of_each), [image.cluster for image in self.images])

    def class_interval(self, index: int) -> tuple[float, float]:
        """95 % bootstrap confidence interval of one class's mean Dice, over groups of images; (nan, nan) for one."""
        known = [image.cluster for image in self.images if image.voted[index] is not None]
        return bootstrap_interval(np.array([counts.dice for counts in self._counts(index)]), known)

    def class_figures(self, index: int) -> dict[str, float]:
        """All metrics of one class, between 0 and 1; HD95 in pixels; nan where a metric is undefined."""
        pooled, pixels = self.pooled(index), self.pixels[index]
        distances = np.array([image.hd95[index] for image in self.images])
        return {
            "dice": self._mean_dice_of(index),
            "expected_dice": mean_of_known(image.expected[index] for image in self.images),
            "pooled_dice": pooled.dice,
            "iou": pooled.iou,
            "sensitivity": pooled.sensitivity,
            "specificity": pooled.specificity,
            "auc_roc": pixels.auc_roc(),
            "auc_pr": pixels.average_precision(),
            "auc_pr_33": pixels.idrid_auc_pr(),
            "hd95": mean_of_known(distances),
            "calibration_error": self.reliability[index].error,
        }

    def figures(self) -> dict[str, float]:
        """The metrics of ``class_figures``, each averaged over the classes for which it is defined."""
        by_class = [self.class_figures(i) for i in range(len(self.classes))]
        return {name: mean_of_known(figures[name] for figures in by_class) for name in by_class[0]}

    def summary(self) -> dict[str, object]:
        """All scores as plain values for JSON, between 0 and 1; HD95 in pixels; None where a metric is undefined."""
        return {
            "images": len(self.images),
            **_plain(self.figures()),
            "dice_interval_95": [finite_or_none(bound) for bound in self.interval()],
            "dice_by_voter": self.dice_by_voter(),
            "by_class": {name: self._class_summary(i) for i, name in enumerate(self.classes)},
            "by_image": {
                image.name: {
                    "dice": image.dice,
                    "expected_dice": finite_or_none(image.expected_dice),
                    "group": image.group,
                    "dice_by_class": {
                        name: None if counts is None else counts.dice
                        for name, counts in zip(self.classes, image.voted, strict=True)
                    },
                }
                for image in self.images
            },
        }

    def _class_summary(self, index: int) -> dict[str, object]:
        interval = [finite_or_none(bound) for bound in self.class_interval(index)]
        found = sum(not math.isnan(image.expected[index]) for image in self.images)
        counted = {"images": self.images_of(index), "images_found": found, "dice_interval_95": interval}
        return _plain(self.class_figures(index)) | counted


def cluster_of(name: str, group: str | None) -> tuple[str, str]:
    """What an image is resampled with, given its name and its group: all images of the group, or itself alone."""
    return ("image", name) if group is None else ("group", group)


class Compared(NamedTuple):
    """The arrays compared for one image, (n - 1, ...); ``inside`` (...) selects the pixels that count."""

    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    truth: NDArray[np.bool_]
    inside: NDArray[np.bool_]


OnImage = Callable[[LabelledImage, Segmentation, Compared], None]
"""Gets an image, its segmentation, and what is compared at the network's size."""


def evaluate(
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    task: Task,
    images: Sequence[LabelledImage],
    on_image: OnImage | None = None,
    *,
    rules: Rules = STRICT,
    mirrored: bool = False,
) -> Scores:
    """Segment every image and compare the result with its masks.

    A class is not scored in images whose data set has no mask of it (``LabelledImage.known``).

    Args:
        spec: spec of the features to read: the interpreter's, at its own resolution or another one.
        on_image: called for each image.
        rules: how the ground truth is made and which pixels count; by default those inside the field of view, at the
            network's size.
        mirrored: also read each image's three flips, and average the probabilities.

    Returns:
        Scores of the classes that at least one image's data set has masks of; images in the order given.

    Raises:
        DataError: there are no images.
        SpecMismatch: the spec differs from the interpreter's in more than resolution.
        ConfigurationError: ``mirrored``, and an image is read in another view than the photograph itself.
        MissingEntry, DamagedEntry: features of an image, or of a flip that is read, are not in the store, or no longer
            what was written.
        NonFinitePrediction: the interpreter computes NaN or infinity for an image.
    """
    interpreter.require(spec)
    if not images:
        raise DataError("expected images to compare with their masks, got none")
    scored: list[int] = np.flatnonzero(np.any([image.known(task) for image in images], axis=0)).tolist()
    targets = tuple(task.targets[i] for i in scored)
    scores = Scores(targets, [], [PooledPixels() for _ in scored], [Reliability() for _ in scored])
    for image in images:
        _, segmented = segment_stored(interpreter, store, spec, image, mirrored=mirrored)
        prediction, truth, known = segmented.prediction, native_truth(store, image, task), image.known(task)
        at_network = compared = _compared("network", segmented, image, truth, task, rules)
        of_scored = [i if known[i] else None for i in scored]
        by_voter = {
            voter: tuple(
                math.nan if i is None else count(masks[i], compared.truth[i], compared.inside).dice for i in of_scored
            )
            for voter, masks in zip(interpreter.voters, prediction.masks_by_voter, strict=True)
        }
        if rules.size != "network":
            compared = _compared(rules.size, segmented, image, truth, task, rules)
        scores.images.append(_score(image, compared, by_voter, expected_of(prediction, segmented.fov), of_scored))
        for pixels, reliability, i in zip(scores.pixels, scores.reliability, of_scored, strict=True):
            if i is not None:
                one = compared.probabilities[i], compared.truth[i], compared.inside
                pixels.add(*one)
                reliability.add(*one)
        if on_image is not None:
            on_image(image, segmented, at_network)
    return scores


def _compared(
    size: Size,
    found: Segmentation,
    image: LabelledImage,
    truth: NDArray[np.uint8],
    task: Task,
    rules: Rules,
) -> Compared:
    """The arrays to compare at a size; ``truth`` is uint8 (H, W)."""
    prediction, geometry = found.prediction, found.geometry
    if size == "network":
        truth = rules.square_truth(geometry, truth, task, image.sample)
        return Compared(prediction.masks, prediction.probabilities[1:], task.members(truth), rules.counted(found.fov))
    if isinstance(size, int):
        truth = rules.square_truth(geometry.with_resolution(size), truth, task, image.sample)
        # The whole square has an answer, as at the network's size.
        found = Segmentation(prediction, rules.counted(found.fov), Geometry.whole(size, size, geometry.resolution))
    probabilities = native_probabilities(prediction, found.fov, found.geometry)[1:]
    return Compared(found.masks, probabilities, task.members(truth), rules.counted(found.native_fov))


def _score(
    image: LabelledImage,
    compared: Compared,
    by_voter: dict[str, tuple[float, ...]],
    expected: tuple[float, ...],
    classes: Sequence[int | None],
) -> ImageScores:
    """Score one image; ``classes`` are indices from 0, the first after the background; None if a class is not known."""
    masks, truth, inside = compared.masks, compared.truth, compared.inside
    return ImageScores(
        image.name,
        tuple(None if i is None else count(masks[i], truth[i], inside) for i in classes),
        tuple(math.nan if i is None else hd95(masks[i] & inside, truth[i] & inside) for i in classes),
        by_voter,
        tuple(math.nan if i is None else expected[i] for i in classes),
        None if image.sample.group is None else "/".join(group_of(image)),
    )


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: finite_or_none(value) for name, value in figures.items()}
