"""Metrics of probabilities, pooled over the pixels of all images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IDRID_THRESHOLDS = range(0, 257, 8)
BINS = 15


class _Areas(NamedTuple):
    """Areas under the ROC and precision-recall curves; nan where a curve is undefined."""

    roc: float
    precision_recall: float


@dataclass
class PooledPixels:
    """Probabilities and ground truth of every pixel that counts, collected image by image."""

    _scores: list[NDArray[np.float32]] = field(default_factory=list)
    _truths: list[NDArray[np.bool_]] = field(default_factory=list)
    _areas: _Areas | None = None
    _idrid_area: float | None = None

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
        """Add an image: a class's probabilities, its true pixels, and the pixels that count; arrays of one shape."""
        self._scores.append(np.asarray(probabilities[inside], dtype=np.float32))
        self._truths.append(truth[inside])
        self._areas = self._idrid_area = None

    def auc_roc(self) -> float:
        """Exact area under the ROC curve (sensitivity over 1 - specificity); nan without both kinds of pixels."""
        return self._exact_areas().roc

    def average_precision(self) -> float:
        """Exact AUC-PR as average precision: the sum over thresholds of precision times the gain in recall."""
        return self._exact_areas().precision_recall

    def idrid_auc_pr(self) -> float:
        """AUC-PR as in IDRiD's challenge: 33 thresholds 0, 8, ..., 256 on 8-bit probability maps, trapezoidal rule.

        A pixel is found if its value reaches the threshold. At 256 none is, which counts as recall 0 at precision 1.
        nan without a pixel of the class.
        """
        if self._idrid_area is None:
            self._idrid_area = self._area_over_idrid_thresholds()
        return self._idrid_area

    def _area_over_idrid_thresholds(self) -> float:
        true_by_value, all_by_value = np.zeros(257), np.zeros(257)
        for scores, truth in zip(self._scores, self._truths, strict=True):
            values = np.rint(255 * scores).astype(np.intp)
            all_by_value += np.bincount(values, minlength=257)
            true_by_value += np.bincount(values[truth], minlength=257)
        found, right = (np.cumsum(x[::-1])[::-1][list(IDRID_THRESHOLDS)] for x in (all_by_value, true_by_value))
        if right[0] == 0:
            return math.nan
        precision = np.where(found > 0, right / np.maximum(found, 1), 1.0)
        recall = right / right[0]
        return float(-np.trapezoid(precision, recall))

    def _exact_areas(self) -> _Areas:
        """Both areas, from a single sort of all pixels, which takes a while for photographs at native size."""
        if self._areas is None:
            true, false = self._counts_by_threshold()
            roc = precision_recall = math.nan
            if true[-1]:
                precision = true[1:] / (true[1:] + false[1:])
                precision_recall = float((precision * np.diff(true)).sum() / true[-1])
                if false[-1]:
                    roc = float(np.trapezoid(true / true[-1], false / false[-1]))
            self._areas = _Areas(roc, precision_recall)
        return self._areas

    def _counts_by_threshold(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """True and false positives at every distinct probability as threshold, from the highest down; preceded by 0."""
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truths)
        order = np.argsort(-scores, kind="stable")
        scores, truth = scores[order], truth[order]
        last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
        true = np.cumsum(truth, dtype=np.float64)[last_of_ties]
        return np.append(0, true), np.append(0, last_of_ties + 1 - true)


@dataclass
class Reliability:
    """How often a class is present, against how often its probabilities say so, in bins of equal width.

    Attributes:
        pixels: number of pixels in each bin.
        expected: sum of their probabilities.
        found: number of those that belong to the class.
    """

    pixels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    expected: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    found: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
        """Add an image: a class's probabilities, its true pixels, and the pixels that count; arrays of one shape."""
        p, y = probabilities[inside].astype(np.float64), truth[inside]
        bins = np.minimum((p * BINS).astype(np.intp), BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        self.expected += np.bincount(bins, weights=p, minlength=BINS)
        self.found += np.bincount(bins, weights=y, minlength=BINS)

    @property
    def error(self) -> float:
        """Expected calibration error: mean over pixels of |mean probability - frequency| of their bin."""
        return float(np.abs(self.expected - self.found).sum() / max(self.pixels.sum(), 1))
