"""Scores of several classes: each on its own, and their mean."""

from __future__ import annotations

import numpy as np
import pytest

from interpreter.curves import PooledPixels, Reliability
from interpreter.evaluation import ImageScores, Scores
from interpreter.metrics import Counts, bootstrap_interval


def test_each_class_has_its_own_interval() -> None:
    dice = {"disc": [0.9, 0.8, 0.7], "cup": [0.2, 0.5, 0.8]}

    def counts(value: float) -> Counts:
        """Of that Dice: 2 TP / (2 TP + FP)."""
        return Counts(50, round(100 * (1 - value) / value), 0, 0)

    scores = Scores(("disc", "cup"))
    for i in range(3):
        both = tuple(counts(values[i]) for values in dice.values())
        scores.images.append(ImageScores(str(i), both, (0.0, 0.0), {"1": 0.0}))
    for _ in dice:
        pixels, reliability = PooledPixels(), Reliability()
        pixels.add(np.array([0.2, 0.9], np.float32), np.array([False, True]), np.array([True, True]))
        scores.pixels.append(pixels)
        scores.reliability.append(reliability)
    by_class = scores.summary()["by_class"]
    assert isinstance(by_class, dict)
    for index, (name, values) in enumerate(dice.items()):
        exact = np.array([counts(value).dice for value in values])
        assert by_class[name]["dice"] == pytest.approx(100 * np.mean(exact))
        assert by_class[name]["dice_interval_95"] == pytest.approx([100 * end for end in bootstrap_interval(exact)])
        low, high = scores.class_interval(index)
        assert min(values) - 0.01 <= low <= float(np.mean(exact)) <= high <= max(values) + 0.01
    whole = scores.interval()
    assert scores.class_interval(1)[0] < whole[0] < scores.class_interval(0)[0]
