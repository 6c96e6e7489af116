"""The Dice that an interpreter expects of its own masks, from its own probabilities; no labels are needed.

For each class E = 2 sum_m p / (sum p + |m|), with sums over the field of view: what Dice would be if the probabilities
were true (Li et al., "Estimating Model Performance under Domain Shifts with Class-Specific Confidence Scores", MICCAI
2022).

p  probability of a class     m  its mask     R  network's square
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from interpreter.prediction import Prediction


def expected_sums(prediction: Prediction, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The sums that E is made of, for each class but the background; those of several photographs can be added.

    Args:
        inside: bool (R, R), the pixels that count.

    Returns:
        float64 (3, n - 1): sum of probabilities within the mask, sum of all probabilities, pixels of the mask.
    """
    probabilities, masks = prediction.probabilities[1:, inside].astype(np.float64), prediction.masks[:, inside]
    return np.stack([(probabilities * masks).sum(axis=1), probabilities.sum(axis=1), masks.sum(axis=1)])


def expected_dice(sums: NDArray[np.float64]) -> tuple[float, ...]:
    """E of each class, 0..1, from ``expected_sums``; nan for a class with neither mask nor probability."""
    return tuple(float(2 * hit / (all_ + pixels)) if all_ + pixels else math.nan for hit, all_, pixels in sums.T)


def expected_of(prediction: Prediction, inside: NDArray[np.bool_]) -> tuple[float, ...]:
    """E of each class but the background in one photograph, 0..1; nan for a class that was not found."""
    sums = expected_sums(prediction, inside)
    return tuple(dice if pixels else math.nan for dice, pixels in zip(expected_dice(sums), sums[2], strict=True))
