"""Metrics against known values and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from interpreter.metrics import bootstrap_interval, count, hd95

RANDOM = np.random.default_rng(0)


def test_counts_and_scores_agree_with_scikit_learn() -> None:
    predicted, truth = RANDOM.random((40, 50)) < 0.3, RANDOM.random((40, 50)) < 0.2
    inside = RANDOM.random((40, 50)) < 0.7
    counts = count(predicted, truth, inside)
    p, t = predicted[inside], truth[inside]
    (tn, fp), (fn, tp) = confusion_matrix(t, p)
    assert (counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative) == (
        tp,
        fp,
        fn,
        tn,
    )
    assert counts.dice == pytest.approx(f1_score(t, p))
    assert counts.iou == pytest.approx(jaccard_score(t, p))
    assert counts.sensitivity == pytest.approx(tp / (tp + fn))
    assert counts.specificity == pytest.approx(tn / (tn + fp))


def test_known_values() -> None:
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    assert count(a, b).dice == 0.5
    assert count(a, b).iou == pytest.approx(1 / 3)
    empty = np.zeros(4, dtype=bool)
    assert count(empty, empty).dice == 1
    assert count(a, empty).dice == 0
    assert (count(a, b) + count(empty, empty)).dice == 0.5


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        count(np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\) and \(4,\)"):
        count(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))


def test_the_bootstrap_of_several_classes_is_that_of_their_mean() -> None:
    random = np.random.default_rng(0)
    values = random.random((12, 3))
    assert bootstrap_interval(values) == pytest.approx(bootstrap_interval(values.mean(axis=1)))
    values[4:, 2] = np.nan  # one class is known of four images
    low, high = bootstrap_interval(values)
    assert low < np.nanmean(values, axis=0).mean() < high
    one = np.stack([values[:, 0], np.full(12, np.nan)], axis=1)
    assert bootstrap_interval(one) == pytest.approx(bootstrap_interval(values[:, 0]))
    rare = np.full((10, 2), np.nan)
    rare[:, 0], rare[0, 1] = 0.9, 0.5  # samples without the first image say nothing of the second class
    assert bootstrap_interval(rare) == pytest.approx((0.7, 0.7))
    assert np.isnan(bootstrap_interval(np.array([0.8]))).all()
    assert np.isnan(bootstrap_interval(np.where(np.eye(30, dtype=bool), 0.5, np.nan))).all()


def test_the_bootstrap_draws_whole_groups() -> None:
    values = np.random.default_rng(0).random(20)
    assert bootstrap_interval(values, list(range(20))) == bootstrap_interval(values)
    low, high = bootstrap_interval(values)
    twice = np.concatenate([values, values])  # each image once more says nothing new
    assert bootstrap_interval(twice, [*range(20), *range(20)]) == pytest.approx((low, high))
    assert bootstrap_interval(twice)[0] > low
    uneven = np.array([0.0, 0.0, 0.0, 1.0])  # a group of three, and one: of both together the mean is 1/4
    assert bootstrap_interval(uneven, "aaab", level=0.4) == pytest.approx((0.25, 0.25))
    assert bootstrap_interval(uneven, "aaab", level=0.9) == pytest.approx((0.0, 1.0))
    assert np.isnan(bootstrap_interval(values, ["a patient"] * 20)).all()


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    low, high = bootstrap_interval(np.full(9, 0.7))
    assert low == pytest.approx(0.7)
    assert high == pytest.approx(0.7)
    values = np.random.default_rng(0).normal(size=400)
    half = 1.96 * values.std() / 20
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(np.random.default_rng(seed).normal(size=40), seed=seed, draws=500)
        covered += low < 0 < high
    assert 0.88 < covered / 200 < 0.99


@pytest.mark.filterwarnings("ignore::FutureWarning:monai.*")
@pytest.mark.parametrize("seed", range(4))
def test_the_hausdorff_distance_is_monais(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = [ndimage.gaussian_filter(random.random((40, 50)), 3) > 0.505 for _ in range(2)]
    expected = compute_hausdorff_distance(*(torch.from_numpy(m)[None, None] for m in masks), percentile=95)
    assert hd95(masks[0], masks[1]) == pytest.approx(float(expected), abs=1e-4)


def test_known_hausdorff_distances() -> None:
    a, b, empty = (np.zeros((9, 9), dtype=np.bool_) for _ in range(3))
    a[2, 2], b[2, 6] = True, True
    assert hd95(a, b) == 4
    assert hd95(a, a) == hd95(empty, empty) == 0
    assert math.isnan(hd95(a, empty))
