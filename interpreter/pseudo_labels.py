"""Pseudo-labels: a teacher's segmentations of unlabelled photographs, which a student learns as ground truth.

D.-H. Lee, Pseudo-Label: the simple and efficient semi-supervised learning method for deep neural networks, ICML
workshops 2013. If the student's views include other renderings of a photograph than the one its teacher reads, this is
self-training with a noisy student (Q. Xie et al., Self-training with Noisy Student, CVPR 2020).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from interpreter.checkpoint import CARD_FILE, CODEBOOK_FILE, WEIGHTS_FILE, folder_of, load_interpreter
from interpreter.data import LabelledImage, without_duplicates
from interpreter.errors import ConfigurationError, DataError
from interpreter.scan import Method
from interpreter.splits import group_of, unaugmented
from interpreter.stored import require_features, segment_stored
from interpreter.task import Task
from store.collection import UNNAMED_TARGET
from store.feature_store import FeatureStore
from store.views import plain_view


class PseudoLabels:
    """Unlabelled photographs, and the teacher that labels them.

    Args:
        store: holds the features that the teacher reads; they may be of another spec than the student's.
        task: the student's task.
        images: the photographs; if they have masks, these are ignored.
        teacher: name of a shipped interpreter, or an interpreter's folder.
        views: views of the student's training, which decide the view of ``images``; the teacher reads the plain view
            of its own training.
        scan: implementation of the selective scan; ``auto`` chooses one by the device.

    Attributes:
        images: the photographs, each once, in the plain view of the student's training.
        task_of_teacher: the teacher's task.
        teacher: sha256 of the teacher's files, 64 hexadecimal digits.
        teacher_images: ids of the images that the teacher has seen (``Card.seen_ids``), sorted.

    Raises:
        ConfigurationError: the teacher segments other classes. CheckpointError: it cannot be loaded.
    """

    def __init__(
        self,
        store: FeatureStore,
        task: Task,
        images: Iterable[LabelledImage],
        teacher: str | Path,
        views: Sequence[str],
        scan: Method = "auto",
    ) -> None:
        self._store, self._task = store, task
        self._network, card = load_interpreter(teacher)
        _require_same_classes(str(teacher), card.task, task)
        self._network.use_scan(scan)
        self._spec, self._backbone = card.spec, card.backbone
        self._view = plain_view(card.training.views)
        self.task_of_teacher, self.teacher_images = card.task, tuple(sorted(card.seen_ids))
        self.images = unaugmented(without_duplicates(map(_unlabelled, images), task), views)
        self.teacher = _digest(folder_of(teacher))

    def excluding(self, labelled: Iterable[LabelledImage], validation: Iterable[LabelledImage]) -> list[LabelledImage]:
        """The photographs without the labelled ones and all that share a group (a patient) with a validation image.

        Raises:
            DataError: none is left, or features that the teacher reads are missing.
        """
        validated = list(validation)
        known = {image.key.image_id for image in (*labelled, *validated)}
        groups = {group_of(image) for image in validated}
        left = [image for image in self.images if image.key.image_id not in known and group_of(image) not in groups]
        if not left:
            raise DataError("no unlabelled photograph is left: all are labelled, or in a group that is validated on")
        require_features(self._store, self._spec, left, (self._view,), self._backbone)
        return left

    def label(
        self, images: Iterable[LabelledImage], device: str | torch.device = "cpu"
    ) -> Iterator[tuple[LabelledImage, NDArray[np.uint8]]]:
        """Yield each image with the teacher's segmentation, uint8 (H, W), encoded as by ``Task.labels``.

        Args:
            device: where the teacher runs; it is moved back to the CPU at the end.
        """
        self._network.to(device)
        for image in images:
            yield image, self._native(image.seen_as(self._view))
        self._network.to("cpu")

    def _native(self, image: LabelledImage) -> NDArray[np.uint8]:
        _, found = segment_stored(self._network, self._store, self._spec, image)
        if found.layers is None:
            return found.labels
        return self._task.labels(dict(zip(self._task.targets, found.layers, strict=True)))


def _digest(folder: Path) -> str:
    """sha256 over the files that decide an interpreter's output: card, weights and codebook."""
    files = [folder / name for name in (CARD_FILE, WEIGHTS_FILE, CODEBOOK_FILE)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def _unlabelled(image: LabelledImage) -> LabelledImage:
    """A photograph without its masks, if it has any."""
    return replace(image, sample=image.sample.model_copy(update={"masks": {}, "indexed": ()}))


def _require_same_classes(teacher: str, theirs: Task, ours: Task) -> None:
    """Raise ConfigurationError unless a teacher has the task's classes; an unnamed single class fits any other."""
    unnamed = len(theirs.targets) == len(ours.targets) == 1 and UNNAMED_TARGET in (*theirs.targets, *ours.targets)
    if theirs.overlapping != ours.overlapping or (theirs.targets != ours.targets and not unnamed):
        raise ConfigurationError(f"the teacher {teacher} segments {_named(theirs)}, the task is {_named(ours)}")


def _named(task: Task) -> str:
    return ", ".join(task.targets) + (" (overlapping)" if task.overlapping else "")
