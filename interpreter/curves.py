"""Metrics of probabilities, of the pixels of all images together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IDRID_THRESHOLDS = range(0, 257, 8)
BINS = 15


class _Areas(NamedTuple):
    """Under the two curves; nan where a curve has no meaning."""

    roc: float
    precision_recall: float


@dataclass
class PooledPixels:
    """Probabilities and truth of every pixel that counts, image after image."""

    _scores: list[NDArray[np.float32]] = field(default_factory=list)
    _truths: list[NDArray[np.bool_]] = field(default_factory=list)
    _areas: _Areas | None = None

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
        """Probabilities of a class, its pixels, and what counts: arrays of one shape."""
        self._scores.append(np.asarray(probabilities[inside], dtype=np.float32))
        self._truths.append(truth[inside])
        self._areas = None

    def auc_roc(self) -> float:
        """Area under sensitivity over 1 - specificity, exact; nan without both kinds of pixels."""
        return self._exact_areas().roc

    def average_precision(self) -> float:
        """AUC-PR as average precision: the sum over thresholds of precision times the gain in recall; exact."""
        return self._exact_areas().precision_recall

    def idrid_auc_pr(self) -> float:
        """AUC-PR as IDRiD's challenge has it: 33 thresholds 0, 8, ..., 256 on probability maps of 8 bits, trapezoids.

        A pixel is found where its value reaches the threshold; at 256 nothing is, which counts as
        recall 0 at precision 1.
        """
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
        """Both areas of one sort of all pixels, which of photographs at native size takes a while."""
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
        """True and false positives at every distinct probability from the highest down, 0 first."""
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truths)
        order = np.argsort(-scores, kind="stable")
        scores, truth = scores[order], truth[order]
        last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
        true = np.cumsum(truth, dtype=np.float64)[last_of_ties]
        return np.append(0, true), np.append(0, last_of_ties + 1 - true)


@dataclass
class Reliability:
    """How often a class is there where its probability says so, in bins of equal width."""

    pixels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    expected: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    found: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
        """Probabilities of a class, its pixels, and what counts: arrays of one shape."""
        p, y = probabilities[inside].astype(np.float64), truth[inside]
        bins = np.minimum((p * BINS).astype(np.intp), BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        self.expected += np.bincount(bins, weights=p, minlength=BINS)
        self.found += np.bincount(bins, weights=y, minlength=BINS)

    @property
    def error(self) -> float:
        """Expected calibration error: mean over pixels of |probability - frequency| of their bin."""
        return float(np.abs(self.expected - self.found).sum() / max(self.pixels.sum(), 1))
