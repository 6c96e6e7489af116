"""Photographs that nobody labelled, learnt from by what a teacher makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from interpreter.checkpoint import Card, load_interpreter, read_card, save_interpreter
from interpreter.config import InterpreterConfig
from interpreter.data import LabelledImage, labelled_images, native_truth
from interpreter.errors import ConfigurationError, DataError
from interpreter.network import Interpreter
from interpreter.prediction import segment
from interpreter.pseudo_labels import PseudoLabels, _require_same_classes
from interpreter.rules import Rules
from interpreter.settings import PseudoLabelled, TrainingSettings
from interpreter.task import Task
from interpreter.training import Training
from store import FeatureSpec, FeatureStore
from store.interrupts import Stop

TASK = Task(name="vessels", targets=("mask",))
SETTINGS = TrainingSettings(epochs=2, batch=2, learning_rate=5e-3, evaluate_every=2)


@pytest.fixture
def images(filled_store: FeatureStore) -> list[LabelledImage]:
    return labelled_images(filled_store, "eyes", None, TASK)


@pytest.fixture(scope="module")
def taught(extracted: Path, spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has learnt from four photographs, enough to find something."""
    store, folder = FeatureStore(extracted, read_only=True), tmp_path_factory.mktemp("taught") / "teacher"
    settings = SETTINGS.model_copy(update={"epochs": 20, "evaluate_every": 20})
    images = labelled_images(store, "eyes", None, TASK)[:4]
    Training(store, spec, TASK, images, InterpreterConfig(), settings, folder, "x").run()
    return folder


@pytest.fixture
def teacher(taught: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return Path(shutil.copytree(taught, tmp_path / "teacher"))


def labels_of(pseudo: PseudoLabels, images: list[LabelledImage]) -> dict[str, NDArray[np.uint8]]:
    """{image id: labels}."""
    return {image.key.image_id: labels for image, labels in pseudo.label(images)}


def student(
    store: FeatureStore, spec: FeatureSpec, labelled: list[LabelledImage], pseudo: PseudoLabels, folder: Path
) -> Training:
    return Training(store, spec, TASK, labelled, InterpreterConfig(), SETTINGS, folder, "x", pseudo_labels=pseudo)


def test_a_student_learns_from_what_the_teacher_makes_of_photographs(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path, tmp_path: Path
) -> None:
    bare = {"masks": {}, "indexed": ()}
    unlabelled = [dataclasses.replace(i, sample=i.sample.model_copy(update=bare)) for i in images[4:]]
    pseudo = PseudoLabels(filled_store, TASK, [*unlabelled, images[4]], teacher, SETTINGS.views)
    assert pseudo.images == unlabelled
    network, _ = load_interpreter(teacher)
    made = labels_of(pseudo, unlabelled)
    assert not np.array_equal(made[images[4].key.image_id], native_truth(filled_store, images[4], TASK))
    for image in unlabelled:
        entry = filled_store.entry(spec, image.key)
        np.testing.assert_array_equal(made[image.key.image_id], segment(network, entry.features()).labels)
    run = student(filled_store, spec, images[:4], pseudo, tmp_path / "student")
    assert run.train_images[-2:] == unlabelled
    assert not {image.key for image in unlabelled} & {image.key for image in run.validation_images}
    run.prepare()
    learnt = {}
    for batch in run.feed.batches(run.epoch):
        for key, (truth, _) in zip(batch.keys, run.feed.truths(batch), strict=True):
            learnt[key] = truth
    for image in unlabelled:
        entry = filled_store.entry(spec, image.key)
        expected = Rules().square_truth(entry.geometry, made[image.key.image_id], TASK, image.sample)
        np.testing.assert_array_equal(learnt[image.key], expected)
    run.run()
    _, card = load_interpreter(tmp_path / "student")
    card_of_teacher = read_card(teacher)
    files = b"".join((teacher / f"interpreter.{kind}").read_bytes() for kind in ("json", "safetensors"))
    assert card.training.pseudo_labels == PseudoLabelled(
        teacher=hashlib.sha256(files).hexdigest(),
        images=tuple(image.key.image_id for image in unlabelled),
        teacher_images=tuple(sorted(card_of_teacher.seen_ids)),
    )
    assert card.seen_ids == {*card.training_ids, *card.validation_ids, *card_of_teacher.training_ids}
    assert {image.key.image_id for image in unlabelled} <= set(card.training_ids)


def test_another_teacher_is_another_run(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path, tmp_path: Path
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
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path, tmp_path: Path
) -> None:
    pseudo = PseudoLabels(filled_store, TASK, images, teacher, SETTINGS.views)
    run = student(filled_store, spec, images[:4], pseudo, tmp_path / "student")
    assert {image.name for image in run.train_images if not image.sample.masks} == {image.name for image in images[4:]}
    drawn = Training(
        filled_store, spec, TASK, images, InterpreterConfig(), SETTINGS.model_copy(update={"labels": 2}),
        tmp_path / "drawn", "x", pseudo_labels=pseudo,
    )  # fmt: skip
    assert [bool(image.sample.masks) for image in drawn.train_images] == 2 * [True] + 4 * [False]
    with pytest.raises(DataError, match="no unlabelled photograph is left"):
        pseudo.excluding(images, [])


def test_a_teacher_of_other_classes_is_refused(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path, tmp_path: Path
) -> None:
    called = Task(name="x", targets=("vessel",))  # a single class may be called otherwise
    network, _ = load_interpreter(teacher)
    found = segment(network, filled_store.entry(spec, images[4].key).features()).labels
    assert found.any()
    made = labels_of(PseudoLabels(filled_store, called, images[4:], teacher, SETTINGS.views), images[4:])
    np.testing.assert_array_equal(made[images[4].key.image_id], found)
    two = Task(name="x", targets=("vessel", "mask"))
    with pytest.raises(ConfigurationError, match=r"segments mask, the task is vessel, mask"):
        PseudoLabels(filled_store, two, images[4:], teacher, SETTINGS.views)
    with pytest.raises(ConfigurationError, match=r"the teacher x segments vessel, the task is disc"):
        _require_same_classes("x", called, Task(name="x", targets=("disc",)))


def test_overlapping_classes_stay_apart(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], tmp_path: Path
) -> None:
    task = Task(name="lesions", targets=("a", "b"), overlapping=True)
    config = InterpreterConfig(classes=3, overlapping=True)
    network = Interpreter(spec, config, filled_store.codebook(spec))
    save_interpreter(tmp_path / "two", network, Card(spec=spec, backbone="x", task=task, config=config))
    pseudo = PseudoLabels(filled_store, task, images[:1], tmp_path / "two", SETTINGS.views)
    network, _ = load_interpreter(tmp_path / "two")
    masks = segment(network, filled_store.entry(spec, images[0].key).features()).masks
    assert masks is not None
    np.testing.assert_array_equal(task.members(labels_of(pseudo, images[:1])[images[0].key.image_id]), masks)


def test_the_teacher_reads_the_rendering_it_learnt_from(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path
) -> None:
    pseudo = PseudoLabels(filled_store, TASK, images[4:], teacher, ("negative",))
    assert {image.key.view for image in pseudo.images} == {"negative"}
    plain = labels_of(PseudoLabels(filled_store, TASK, images[4:], teacher, SETTINGS.views), images[4:])
    for name, labels in labels_of(pseudo, pseudo.images).items():
        np.testing.assert_array_equal(labels, plain[name])
    network, card = load_interpreter(teacher)
    of_negatives = card.model_copy(update={"training": card.training.model_copy(update={"views": ("negative",)})})
    save_interpreter(teacher, network, of_negatives)
    with pytest.raises(DataError, match=r"lacks features of eyes/eye\d.* \(negative\)"):
        PseudoLabels(filled_store, TASK, images[4:], teacher, SETTINGS.views).excluding([], [])


def test_no_patient_is_validated_and_learnt_from(
    filled_store: FeatureStore, images: list[LabelledImage], teacher: Path
) -> None:
    of_one = [dataclasses.replace(i, sample=i.sample.model_copy(update={"group": "one"})) for i in images[:2]]
    pseudo = PseudoLabels(filled_store, TASK, [*of_one, *images[2:]], teacher, SETTINGS.views)
    assert [one.name for one in pseudo.excluding([], of_one[:1])] == [image.name for image in images[2:]]


def test_a_student_of_windows_goes_on_where_it_was_stopped(
    filled_store: FeatureStore, spec: FeatureSpec, images: list[LabelledImage], teacher: Path, tmp_path: Path
) -> None:
    """Windows about what the teacher found, flipped at random: stopped in mid-epoch, they are the same ones."""
    settings = SETTINGS.model_copy(update={"crop": 16, "foreground": 0.5, "flips": True})

    def run(folder: str) -> Training:
        pseudo = PseudoLabels(filled_store, TASK, images[4:], teacher, settings.views)
        return Training(
            filled_store, spec, TASK, images[:4], InterpreterConfig(), settings, tmp_path / folder, "x",
            pseudo_labels=pseudo,
        )  # fmt: skip

    whole, parts, stop = run("whole"), run("parts"), Stop()
    whole.run()

    def ask(epoch: int, position: int, _loss: float) -> None:
        if (epoch, position) == (0, 1):
            stop.request()

    with pytest.raises(KeyboardInterrupt):
        parts.run(ask, stop)
    rest = run("parts")
    assert (rest.epoch, rest.next_batch) == (0, 2)
    rest.run()
    for one, other in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(one, other)
