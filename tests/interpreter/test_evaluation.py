"""Scores of several classes: each on its own, and their mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interpreter.curves import PooledPixels, Reliability
from interpreter.evaluation import ImageScores, Scores
from interpreter.metrics import Counts, bootstrap_interval
from interpreter.rendering import write_label_maps
from interpreter.task import Task


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


def test_overlapping_classes_are_written_one_by_one(tmp_path: Path) -> None:
    """A cup inside its disc is in the label map alone; of lesions that overlap, each has a file of its own."""
    labels = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    masks = np.array([[[0, 1], [1, 0]], [[0, 0], [1, 1]]], dtype=np.bool_)
    for folder, layers, written in (
        ("discs", None, ["eyes_a.png"]),
        ("lesions", masks, ["eyes_a.png", "eyes_a_EX.png", "eyes_a_SE.png"]),
    ):
        task = Task(name=folder, targets=("EX", "SE"), overlapping=layers is not None)
        file = write_label_maps(tmp_path / folder, "eyes/a", labels, layers, task)
        assert file.name == "eyes_a.png"
        assert sorted(path.name for path in file.parent.iterdir()) == written
        np.testing.assert_array_equal(np.asarray(Image.open(file)), labels)
    for name, mask in zip(("EX", "SE"), masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "lesions" / f"eyes_a_{name}.png")), mask)


def test_finding_nothing_is_no_criterion_for_classes_that_images_lack() -> None:
    """Nine images without a lesion, one with: what finds it beats what never finds any."""
    everything = np.ones(100, dtype=np.bool_)
    lesion = np.arange(100) < 10

    def scored(probability_there: float, probability_elsewhere: float) -> Scores:
        scores, pixels = Scores(("EX",)), PooledPixels()
        for i in range(10):
            truth = lesion & (i == 0)
            probability = np.where(lesion, probability_there if i == 0 else 0.3, probability_elsewhere)
            found = probability > 0.5
            counts = Counts(*(int((a & b).sum()) for a, b in ((found, truth), (found, ~truth), (~found, truth))), 0)
            scores.images.append(ImageScores(str(i), (counts,), (0.0,), {}))
            pixels.add(probability.astype(np.float32), truth, everything)
        scores.pixels.append(pixels)
        return scores

    blind, eager = scored(0.1, 0.2), scored(0.9, 0.2)
    eager.images[1:] = [ImageScores("x", (Counts(0, 1, 0, 99),), (0.0,), {})] * 9  # a wrong pixel each
    assert blind.mean_dice == 0.9 > eager.mean_dice
    assert blind.criterion(overlapping=False) == 0.9
    assert blind.criterion(overlapping=True) < eager.criterion(overlapping=True)
    lacking = scored(0.1, 0.2)
    lacking.pixels[0] = PooledPixels()
    lacking.pixels[0].add(np.zeros(5, np.float32), np.zeros(5, np.bool_), np.ones(5, np.bool_))
    assert lacking.criterion(overlapping=True) == 0.9  # no pixel of the class anywhere: nothing but Dice is left
