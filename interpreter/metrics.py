"""Metrics of segmentations. Masks are bool arrays of one shape; ``inside`` selects the pixels that count."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """A confusion matrix, in pixels; the counts of several images can be added for pooled metrics."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where both masks are empty."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); 1 where both masks are empty."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN); 1 where there is nothing to find."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); 1 where there is no background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)


def count(predicted: Mask, truth: Mask, inside: Mask | None = None) -> Counts:
    """The confusion matrix of two masks."""
    shapes = [mask.shape for mask in (predicted, truth, inside) if mask is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected masks of one shape, got {' and '.join(map(str, shapes))}")
    if inside is not None:
        predicted, truth = predicted[inside], truth[inside]
    both = int(np.count_nonzero(predicted & truth))
    positive, real = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    return Counts(both, positive - both, real - both, truth.size - positive - real + both)


def hd95(predicted: Mask, truth: Mask) -> float:
    """95th percentile of the distances between the outlines of two masks, in pixels; the larger of both directions.

    0 if both masks are empty, nan if only one is.
    """
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.nan
    outlines = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, truth)]
    distances = [ndimage.distance_transform_edt(~outline) for outline in outlines]
    there, back = distances[1][outlines[0]], distances[0][outlines[1]]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def bootstrap_interval(
    values: NDArray[np.floating],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the mean over images; ``values`` (images) or (images, classes).

    With several classes, the interval is that of the mean over classes of their means; a value is nan if it is not
    known where the class is in the image, and samples without any image of some class are not counted. Without any
    sample that is left, and of a single group, there is no interval: (nan, nan).

    Args:
        groups: the group of each image. Whole groups are resampled (the cluster bootstrap, Davison and Hinkley 1997,
            section 3.8): images of one, such as the eyes of a patient, say less than as many independent ones. None
            stands for independent images.
    """
    of_image = groups if groups is not None else range(len(values))
    places = {group: place for place, group in enumerate(dict.fromkeys(of_image))}
    if len(places) < 2:
        return math.nan, math.nan
    member = np.eye(len(places))[:, [places[group] for group in of_image]]  # (groups, images)
    of_class = values.reshape(len(values), -1)
    of_class = of_class[:, ~np.isnan(of_class).all(axis=0)]
    known = ~np.isnan(of_class)
    drawn = np.random.default_rng(seed).integers(0, len(places), (draws, len(places)))
    sums, counts = ((member @ one)[drawn].sum(axis=1) for one in (np.where(known, of_class, 0), known))
    whole = (counts > 0).all(axis=1)
    if not whole.any():
        return math.nan, math.nan
    means = (sums[whole] / counts[whole]).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def in_points(share: float | None) -> str:
    """A share as text in points of 100, such as 78.21; empty if it is None or nan."""
    return "" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def finite_or_none(value: float) -> float | None:
    """A number for JSON, which knows neither nan nor infinity: None in their place."""
    return value if math.isfinite(value) else None
