"""Metrics of probabilities against scikit-learn and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, average_precision_score, precision_score, recall_score, roc_auc_score

from interpreter.curves import BINS, PooledPixels, Reliability


def drawn(seed: int, decimals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with ties, truth that follows them, and what counts."""
    random = np.random.default_rng(seed)
    truth = random.random((30, 40)) < 0.15
    scores = np.clip(random.normal(0.3, 0.2, truth.shape) + 0.3 * truth, 0, 1).round(decimals).astype(np.float32)
    return scores, truth, random.random(truth.shape) < 0.8


@pytest.mark.parametrize("decimals", [1, 6])
def test_areas_of_pooled_pixels_are_scikit_learns(decimals: int) -> None:
    pooled, images = PooledPixels(), [drawn(seed, decimals) for seed in range(3)]
    for scores, truth, inside in images:
        pooled.add(scores, truth, inside)
    p = np.concatenate([scores[inside] for scores, _, inside in images])
    t = np.concatenate([truth[inside] for _, truth, inside in images])
    assert pooled.auc_roc() == pytest.approx(roc_auc_score(t, p), abs=1e-9)
    assert pooled.average_precision() == pytest.approx(average_precision_score(t, p), abs=1e-9)
    recalls, precisions = [], []
    for threshold in range(0, 257, 8):
        found = np.rint(255 * p) >= threshold
        recalls.append(recall_score(t, found))
        precisions.append(precision_score(t, found, zero_division=1.0))
    assert pooled.idrid_auc_pr() == pytest.approx(auc(recalls, precisions), abs=1e-9)


def test_perfect_and_meaningless_areas() -> None:
    truth, inside = np.array([True, False, True, False]), np.ones(4, dtype=np.bool_)
    perfect = PooledPixels()
    perfect.add(truth.astype(np.float32), truth, inside)
    assert (perfect.auc_roc(), perfect.average_precision(), perfect.idrid_auc_pr()) == (1, 1, 1)
    nothing = PooledPixels()
    nothing.add(truth.astype(np.float32), np.zeros(4, dtype=np.bool_), inside)
    assert all(map(math.isnan, (nothing.auc_roc(), nothing.average_precision(), nothing.idrid_auc_pr())))


def test_the_calibration_error_is_that_of_scikit_learns_curve() -> None:
    scores, truth, inside = drawn(0, 6)
    reliability = Reliability()
    reliability.add(scores, truth, inside)
    frequency, mean = calibration_curve(truth[inside], scores[inside], n_bins=BINS)
    pixels = reliability.pixels[reliability.pixels > 0]
    assert reliability.error == pytest.approx((np.abs(frequency - mean) * pixels).sum() / pixels.sum(), abs=1e-6)


def test_probabilities_that_mean_what_they_say_have_no_error() -> None:
    scores = np.full((1000, 100), 0.3, dtype=np.float32)
    truth = np.arange(100_000).reshape(scores.shape) % 10 < 3
    reliability = Reliability()
    reliability.add(scores, truth, np.ones_like(truth))
    assert reliability.error == pytest.approx(0, abs=1e-6)
    reliability.add(scores * 0, np.ones_like(truth), np.ones_like(truth))
    assert reliability.error == pytest.approx(0.5, abs=1e-6)


def test_pixels_are_sorted_once_for_both_areas_and_anew_when_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled, sorts = PooledPixels(), []
    count = PooledPixels._counts_by_threshold

    def counting(one: PooledPixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sorts.append(one)
        return count(one)

    monkeypatch.setattr(PooledPixels, "_counts_by_threshold", counting)
    truth, everywhere = np.array([True, False]), np.ones(2, np.bool_)
    pooled.add(np.array([0.9, 0.1], np.float32), truth, everywhere)
    assert (pooled.auc_roc(), pooled.average_precision(), pooled.auc_roc()) == (1, 1, 1)
    assert len(sorts) == 1
    pooled.add(np.array([0.1, 0.9], np.float32), truth, everywhere)
    assert pooled.auc_roc() == 0.5
    assert len(sorts) == 2
