"""How the truth is made: exact where it must be, and the published way where that was asked for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.extraction import Extractor
from extractor.runs import extract_dataset
from interpreter.config import InterpreterConfig
from interpreter.data import labelled_images, native_truth
from interpreter.evaluation import evaluate
from interpreter.network import Interpreter
from interpreter.rules import BICUBIC, Rules, pillow_resized
from interpreter.task import Task
from store import FeatureSpec, FeatureStore

TASK = Task(name="vessels", targets=("mask",))


def test_pillow_takes_bicubic_for_greyscale_masks_where_no_filter_is_named() -> None:
    mask = Image.fromarray((np.random.default_rng(0).random((60, 50)) < 0.3).astype(np.uint8) * 255)
    np.testing.assert_array_equal(np.asarray(mask.resize((20, 20))), np.asarray(mask.resize((20, 20), BICUBIC)))


def test_everything_the_kernel_touches_becomes_foreground() -> None:
    mask = np.zeros((96, 96), dtype=np.bool_)
    mask[:, 45:48] = True
    assert pillow_resized(mask, 32).sum() > 1.3 * mask.sum() / 9


@pytest.mark.parametrize("mode", ["1", "P"])
def test_pillow_takes_nearest_for_masks_of_one_bit_or_with_a_palette(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path, mode: str
) -> None:
    shutil.copytree(dataset_folder, tmp_path / "eyes")
    for path in (tmp_path / "eyes" / "masks").iterdir():
        Image.open(path).convert(mode).save(path)
    store = FeatureStore("memory://")
    extract_dataset(load_dataset(f"folder:{tmp_path / 'eyes'}", "eyes"), store, Extractor(backbone, spec))
    for image in labelled_images(store, "eyes", None, TASK):
        assert image.sample.indexed == ("mask",)
        entry, native = store.entry(spec, image.key), native_truth(store, image, TASK)
        truth = Rules(masks="pillow").square_truth(entry.geometry, native, TASK, image.sample)
        file = Image.open(tmp_path / "eyes" / "masks" / f"{image.sample.name}.png")
        assert file.mode == mode
        cropped = Image.fromarray(entry.geometry.crop(np.asarray(file.convert("L"))) > 127).convert(mode)
        exact = np.asarray(cropped.resize((spec.resolution, spec.resolution))) != 0
        np.testing.assert_array_equal(truth != 0, exact)


def test_overlapping_targets_are_bits_and_come_apart_again() -> None:
    task = Task(name="lesions", targets=("MA", "HE", "EX"), overlapping=True)
    random = np.random.default_rng(0)
    masks = {target: random.random((6, 7)) < 0.5 for target in task.targets}
    labels = task.labels(masks)
    np.testing.assert_array_equal(task.members(labels), np.stack(list(masks.values())))
    only = task.labels({"HE": masks["HE"]})
    np.testing.assert_array_equal(task.members(only)[1], masks["HE"])
    assert not task.members(only)[[0, 2]].any()


@pytest.mark.parametrize("overlapping", [False, True])
def test_where_pixels_count_and_at_what_size(filled_store: FeatureStore, spec: FeatureSpec, overlapping: bool) -> None:
    task = TASK.model_copy(update={"overlapping": overlapping})
    network = Interpreter(spec, InterpreterConfig(overlapping=overlapping))
    images = labelled_images(filled_store, "eyes", None, task)[:2]

    def pixels(rules: Rules) -> int:
        counts = evaluate(network, filled_store, spec, task, images, rules=rules).pooled()
        return counts.true_positive + counts.false_positive + counts.false_negative + counts.true_negative

    assert pixels(Rules(region="image")) == 2 * 32 * 32
    assert pixels(Rules(region="image", size="native")) == 2 * 80 * 96
    assert pixels(Rules(region="image", size=24)) == 2 * 24 * 24
    assert pixels(Rules(size=32)) == pixels(Rules()) < pixels(Rules(region="image"))
    assert pixels(Rules(size="native")) < pixels(Rules(region="image", size="native"))


def test_a_square_of_the_networks_side_is_the_networks_own(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    network = Interpreter(spec, InterpreterConfig())
    images = labelled_images(filled_store, "eyes", None, TASK)[:2]
    own, square, larger = (
        evaluate(network, filled_store, spec, TASK, images, rules=Rules(size=size)).summary()
        for size in ("network", spec.resolution, 2 * spec.resolution)
    )
    assert own == square
    assert larger["dice"] == pytest.approx(own["dice"], abs=10)
    assert larger["hd95"] > own["hd95"]


def test_the_rules_change_the_truth_and_not_the_prediction(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    network = Interpreter(spec, InterpreterConfig())
    images = [  # as if their masks were greyscale files
        dataclasses.replace(image, sample=image.sample.model_copy(update={"indexed": ()}))
        for image in labelled_images(filled_store, "eyes", None, TASK)
    ]
    strict, published = (
        evaluate(network, filled_store, spec, TASK, images, rules=Rules(masks=masks, region="image")).pooled()
        for masks in ("nearest", "pillow")
    )
    real = [c.true_positive + c.false_negative for c in (strict, published)]
    found = [c.true_positive + c.false_positive for c in (strict, published)]
    assert real[1] > 1.2 * real[0]
    assert found[0] == found[1]


def test_targets_of_a_task_differ() -> None:
    with pytest.raises(ValidationError, match="expected targets that differ, found mask twice"):
        Task(name="twice", targets=("mask", "mask"))
