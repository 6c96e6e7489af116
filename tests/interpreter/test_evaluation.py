"""Scores of several classes: each on its own, and their mean."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.extraction import Extractor
from extractor.runs import extract_dataset
from interpreter.config import HeadName, InterpreterConfig
from interpreter.curves import PooledPixels, Reliability
from interpreter.data import labelled_images
from interpreter.evaluation import ImageScores, Scores, evaluate
from interpreter.expected import expected_of
from interpreter.metrics import Counts, bootstrap_interval
from interpreter.network import Interpreter
from interpreter.prediction import predict
from interpreter.rules import Rules
from interpreter.task import Task
from store import FeatureSpec, FeatureStore, SpecError, SpecMismatch
from tests.conftest import TINY


def test_each_class_has_its_own_interval() -> None:
    dice = {"disc": [0.9, 0.8, 0.7], "cup": [0.2, 0.5, 0.8]}

    def counts(value: float) -> Counts:
        """Of that Dice: 2 TP / (2 TP + FP)."""
        return Counts(50, round(100 * (1 - value) / value), 0, 0)

    scores = Scores(("disc", "cup"))
    for i in range(3):
        both = tuple(counts(values[i]) for values in dice.values())
        scores.images.append(ImageScores(str(i), both, (0.0, 0.0), {"1": (0.0, 1.0)}, (0.5, math.nan)))
    for _ in dice:
        pixels, reliability = PooledPixels(), Reliability()
        pixels.add(np.array([0.2, 0.9], np.float32), np.array([False, True]), np.array([True, True]))
        scores.pixels.append(pixels)
        scores.reliability.append(reliability)
    summary = scores.summary()
    by_class = summary["by_class"]
    assert isinstance(by_class, dict)
    for index, (name, values) in enumerate(dice.items()):
        exact = np.array([counts(value).dice for value in values])
        assert by_class[name]["dice"] == pytest.approx(np.mean(exact))
        assert by_class[name]["dice_interval_95"] == pytest.approx(bootstrap_interval(exact))
        low, high = scores.class_interval(index)
        assert min(values) - 0.01 <= low <= float(np.mean(exact)) <= high <= max(values) + 0.01
    assert (by_class["disc"]["expected_dice"], by_class["cup"]["expected_dice"]) == (0.5, None)
    assert summary["by_image"]["0"]["expected_dice"] == 0.5  # type: ignore[index]
    first = scores.images[0]
    disc, unknown = first.voted[0], replace(first, voted=(first.voted[0], None))
    assert disc is not None
    by_image = replace(scores, images=[unknown, *scores.images[1:]]).summary()["by_image"]
    assert by_image["0"]["dice_by_class"] == {"disc": disc.dice, "cup": None}  # type: ignore[index]
    grouped = Scores(scores.classes, [replace(image, group="a patient") for image in scores.images])
    assert np.isnan([*grouped.interval(), *grouped.class_interval(0)]).all()
    whole = scores.interval()
    assert scores.class_interval(1)[0] < whole[0] < scores.class_interval(0)[0]


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
            scores.images.append(ImageScores(str(i), (counts,), (0.0,), {}, (0.5,)))
            pixels.add(probability.astype(np.float32), truth, everything)
        scores.pixels.append(pixels)
        return scores

    blind, eager = scored(0.1, 0.2), scored(0.9, 0.2)
    eager.images[1:] = [ImageScores("x", (Counts(0, 1, 0, 99),), (0.0,), {}, (0.5,))] * 9  # a wrong pixel each
    assert blind.mean_dice == 0.9 > eager.mean_dice
    assert blind.criterion(overlapping=False) == 0.9
    assert blind.criterion(overlapping=True) < eager.criterion(overlapping=True)
    without_class = scored(0.1, 0.2)
    without_class.pixels[0] = PooledPixels()
    without_class.pixels[0].add(np.zeros(5, np.float32), np.zeros(5, np.bool_), np.ones(5, np.bool_))
    assert without_class.criterion(overlapping=True) == 0.9  # no pixel of the class anywhere: nothing but Dice is left


@pytest.mark.parametrize("head", ["adaptive", "joint", "mlp"])
def test_photographs_may_be_read_at_another_resolution(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, head: HeadName
) -> None:
    store, larger = FeatureStore("memory://"), TINY.with_overrides(resolution=2 * spec.resolution).spec(backbone)
    assert spec.with_resolution(2 * spec.resolution) == larger
    assert larger.with_resolution(spec.resolution) == spec
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, Extractor(backbone, larger))
    task = Task(name="vessels", targets=("mask",))
    images = labelled_images(store, "eyes", None, task)
    seen: list[tuple[int, ...]] = []
    network = Interpreter(spec, InterpreterConfig(head=head))
    scores = evaluate(
        network, store, larger, task, images, lambda _, found, at_network: seen.append(found.prediction.labels.shape)
    )
    assert seen == 6 * [(64, 64)]
    assert scores.summary()["images"] == 6
    for image, scored in zip(images, scores.images, strict=True):
        features = store.entry(larger, image.key).features()
        found = predict(network, features.maps, features.fov)
        assert scored.expected == pytest.approx(expected_of(found, features.fov), nan_ok=True)
    other = larger.model_copy(update={"clip": not larger.clip})
    with pytest.raises(SpecMismatch, match="clip"):
        evaluate(network, store, other, task, images)
    with pytest.raises(SpecError, match="a square of 33 pixels are not in proportion to those of 32"):
        spec.with_resolution(33)


def test_a_voter_alone_is_averaged_as_the_vote_is() -> None:
    scores = Scores(("disc", "cup"))
    right, none = Counts(10, 0, 0, 90), Counts(0, 10, 10, 80)
    scores.images.append(ImageScores("a", (right, none), (0.0, 0.0), {"1": (1.0, 0.0)}, (1.0, 1.0)))
    scores.images.append(ImageScores("b", (right, None), (0.0, math.nan), {"1": (1.0, math.nan)}, (1.0, math.nan)))
    assert scores.mean_dice == 0.5
    assert scores.dice_by_voter() == {"1": 0.5}
    assert (scores.class_dice_by_voter(0), scores.class_dice_by_voter(1)) == ({"1": 1.0}, {"1": 0.0})


def test_a_photograph_of_the_name_of_a_group_is_not_of_the_group() -> None:
    image = ImageScores("d/p1", (), (), {}, ())
    assert image.cluster != replace(image, name="d/left", group="d/p1").cluster


def test_the_networks_size_by_number_is_the_networks_size(
    backbone: Backbone, spec: FeatureSpec, filled_store: FeatureStore
) -> None:
    task = Task(name="vessels", targets=("mask",))
    images = labelled_images(filled_store, "eyes", None, task)
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig(vss_max_size=0))
    for region in ("fov", "image"):
        rules = Rules(masks="pillow", region=region)  # type: ignore[arg-type]
        at_network = evaluate(network, filled_store, spec, task, images, rules=rules)
        by_number = rules.model_copy(update={"size": spec.resolution})
        assert evaluate(network, filled_store, spec, task, images, rules=by_number).summary() == at_network.summary()
