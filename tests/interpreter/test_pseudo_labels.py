"""Photographs that nobody labelled, learnt from by what a teacher makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from interpreter.checkpoint import Card, load_interpreter, save_interpreter
from interpreter.data import Labelled, labelled_images, network_truth
from interpreter.errors import ConfigurationError, TrainingDataError
from interpreter.network import Interpreter, InterpreterConfig
from interpreter.prediction import segment
from interpreter.pseudo_labels import PseudoLabels
from interpreter.rules import Rules
from interpreter.task import Task
from interpreter.training import Training, TrainingSettings
from store import FeatureSpec, FeatureStore

TASK = Task(name="vessels", targets=("mask",))
SETTINGS = TrainingSettings(epochs=2, batch=2, learning_rate=5e-3, evaluate_every=2)


@pytest.fixture
def images(filled_store: FeatureStore) -> list[Labelled]:
    return labelled_images(filled_store, "eyes", None, TASK)


@pytest.fixture
def teacher(filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], tmp_path: Path) -> Path:
    """An interpreter that has learnt a little from four photographs."""
    Training(filled_store, spec, TASK, images[:4], InterpreterConfig(), SETTINGS, tmp_path / "teacher").run()
    return tmp_path / "teacher"


def student(
    store: FeatureStore, spec: FeatureSpec, labelled: list[Labelled], pseudo: PseudoLabels, folder: Path
) -> Training:
    return Training(store, spec, TASK, labelled, InterpreterConfig(), SETTINGS, folder, pseudo_labels=pseudo)


def test_a_student_learns_from_what_the_teacher_makes_of_photographs(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], teacher: Path, tmp_path: Path
) -> None:
    bare = {"masks": {}, "indexed": ()}
    unlabelled = [dataclasses.replace(i, sample=i.sample.model_copy(update=bare)) for i in images[4:]]
    pseudo = PseudoLabels(filled_store, TASK, [*unlabelled, images[4]], teacher, SETTINGS.views)
    assert pseudo.images == unlabelled
    network, _ = load_interpreter(teacher)
    for image in unlabelled:
        entry = filled_store.entry(spec, image.key)
        np.testing.assert_array_equal(pseudo.native(image), segment(network, entry.features()).labels)
        assert not np.array_equal(pseudo.native(image), network_truth(filled_store, entry, images[4], TASK, Rules()))
    run = student(filled_store, spec, images[:4], pseudo, tmp_path / "student")
    assert run.train_images[-2:] == unlabelled
    assert not {image.key for image in unlabelled} & {image.key for image in run.validation_images}
    learnt = {}
    for batch in run._batches():
        for key, (truth, _) in zip(batch.keys, run.truths(batch), strict=True):
            learnt[key] = truth
    for image in unlabelled:
        entry = filled_store.entry(spec, image.key)
        expected = Rules().network_truth(entry, pseudo.native(image), TASK, image.sample)
        np.testing.assert_array_equal(learnt[image.key], expected)
    run.run()
    _, card = load_interpreter(tmp_path / "student")
    weights = (teacher / "interpreter.safetensors").read_bytes()
    assert card.training["pseudo_labels"] == {
        "teacher": hashlib.sha256(weights).hexdigest(),
        "images": [image.key.image_id for image in unlabelled],
    }
    assert {image.key.image_id for image in unlabelled} <= set(card.training_ids)


def test_another_teacher_is_another_run(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], teacher: Path, tmp_path: Path
) -> None:
    pseudo = PseudoLabels(filled_store, TASK, images[4:], teacher, SETTINGS.views)
    student(filled_store, spec, images[:4], pseudo, tmp_path / "student").run()
    network, card = load_interpreter(teacher)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    save_interpreter(teacher, network, card)
    other = PseudoLabels(filled_store, TASK, images[4:], teacher, SETTINGS.views)
    with pytest.raises(ConfigurationError, match="student"):
        student(filled_store, spec, images[:4], other, tmp_path / "student")


def test_what_has_labels_is_not_guessed(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], teacher: Path, tmp_path: Path
) -> None:
    pseudo = PseudoLabels(filled_store, TASK, images, teacher, SETTINGS.views)
    run = student(filled_store, spec, images[:4], pseudo, tmp_path / "student")
    assert {image.name for image in run.train_images if not image.sample.masks} == {image.name for image in images[4:]}
    drawn = Training(
        filled_store, spec, TASK, images, InterpreterConfig(), SETTINGS.model_copy(update={"labels": 2}),
        tmp_path / "drawn", pseudo_labels=pseudo,
    )  # fmt: skip
    assert [bool(image.sample.masks) for image in drawn.train_images] == 2 * [True] + 4 * [False]
    with pytest.raises(TrainingDataError, match="every unlabelled photograph is among the labelled ones"):
        pseudo.beside(images)


def test_a_teacher_of_other_classes_is_refused(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], teacher: Path, tmp_path: Path
) -> None:
    called = Task(name="x", targets=("vessel",))  # a single class may be called otherwise
    assert PseudoLabels(filled_store, called, images[4:], teacher, SETTINGS.views).native(images[4]).max() <= 1
    two = Task(name="x", targets=("vessel", "mask"))
    with pytest.raises(ConfigurationError, match=r"segments mask, the task is vessel, mask"):
        PseudoLabels(filled_store, two, images[4:], teacher, SETTINGS.views)


def test_overlapping_classes_stay_apart(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], tmp_path: Path
) -> None:
    task = Task(name="lesions", targets=("a", "b"), overlapping=True)
    config = InterpreterConfig(classes=3, overlapping=True)
    network = Interpreter(spec, config, filled_store.codebook(spec))
    save_interpreter(tmp_path / "two", network, Card(spec=spec, backbone="x", task=task, config=config))
    pseudo = PseudoLabels(filled_store, task, images[:1], tmp_path / "two", SETTINGS.views)
    network, _ = load_interpreter(tmp_path / "two")
    masks = segment(network, filled_store.entry(spec, images[0].key).features()).masks
    assert masks is not None
    np.testing.assert_array_equal(task.members(pseudo.native(images[0])), masks)


def test_features_that_the_teacher_reads_have_to_be_there(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[Labelled], teacher: Path
) -> None:
    with pytest.raises(TrainingDataError, match=r"lacks features of eyes/eye\d.* \(negative\)"):
        PseudoLabels(filled_store, TASK, images[4:], teacher, ("negative",))
