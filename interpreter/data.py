"""Labelled images of a store, ready for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from interpreter.errors import DataError
from interpreter.rules import Rules
from interpreter.task import Task
from store.collection import UNNAMED_TARGET, Collection, Sample
from store.feature_store import FeatureStore
from store.features import FeatureEntry, Key


@dataclass(frozen=True)
class LabelledImage:
    """One image with its labels.

    Attributes:
        dataset: name of the collection that the image comes from.
        targets: every target that at least one image of the collection has a mask of.
        sample: the image's record in the collection.
        key: the image's entry in the store.
    """

    dataset: str
    targets: tuple[str, ...]
    sample: Sample
    key: Key

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.sample.name}"

    def known(self, task: Task) -> NDArray[np.bool_]:
        """Return for which of a task's targets it is known where they are in this image, bool (n - 1).

        A target is known if any image of the data set has a mask of it; an image without that mask then has none of
        the target. All other targets are unknown: this image is neither used to learn them nor scored on them.
        """
        return np.isin(task.targets, self.targets)

    def masks_of(self, task: Task) -> tuple[str | None, ...]:
        """The digest of the image's mask of each of a task's targets; None for a target without a mask."""
        return tuple(self.sample.masks.get(target) for target in task.targets)

    def truth_facts(self, task: Task, rules: Rules) -> list[str | None]:
        """What decides the image's ground truth: its masks and, if the rules ask, which of them have a palette."""
        indexed = sorted(set(self.sample.indexed) & set(task.targets)) if rules.masks == "pillow" else []
        return [*self.masks_of(task), *indexed]

    def seen_as(self, view: str) -> LabelledImage:
        """The same image with the features of one of its views."""
        return replace(self, key=Key(self.key.image_id, view))

    def named_as(self, task: Task) -> LabelledImage:
        """The same image, with its only mask assigned to the task's only target, whatever its name was."""
        (target,), (mask,) = task.targets, self.sample.masks.values()
        named = {"masks": {target: mask}, "indexed": (target,) * len(self.sample.indexed)}
        return replace(self, targets=task.targets, sample=self.sample.model_copy(update=named))


def labelled_images(store: FeatureStore, dataset: str, split: str | None, task: Task) -> list[LabelledImage]:
    """The images of a collection that have a mask of every target of a task, or of at least one if targets overlap.

    Args:
        split: take only this split; None takes all.

    Raises:
        DataError: there is no such image; the message lists the targets and splits of the collection.
    """
    collection = store.collections.read(dataset)
    found = [image for image in _in_split(collection, split) if task.takes(image.sample.masks)]
    if not found:
        raise DataError(
            f"{dataset}: no image{f' of split {split}' if split else ''} is labelled with {', '.join(task.targets)}; "
            f"targets there: {', '.join(collection.targets) or 'none'}; splits: {_splits(collection)} (a "
            "folder's targets are the folders of masks/: masks/vessel/a.png is the target vessel of a.png)"
        )
    return found


def labelled_in(store: FeatureStore, references: Iterable[str], task: Task) -> list[LabelledImage]:
    """The labelled images of data sets given as NAME or NAME:SPLIT, each photograph once (``without_duplicates``)."""
    parts = [reference.partition(":") for reference in references]
    return labelled_at(store, [(name, split or None) for name, _, split in parts], task)


def labelled_at(store: FeatureStore, places: Iterable[tuple[str, str | None]], task: Task) -> list[LabelledImage]:
    """Like ``labelled_in``, with each data set given as (name, split); split None takes all."""
    return without_duplicates((image for place in places for image in labelled_images(store, *place, task)), task)


def labelled_for(store: FeatureStore, references: Iterable[str], task: Task) -> tuple[list[LabelledImage], list[str]]:
    """Like ``labelled_in``, for scoring an interpreter of the task; also returns notes for the user.

    A folder of masks that is not divided into targets gets the target name ``mask``, whatever the masks show. If the
    task has a single target, such masks are taken for it.
    """
    images: list[LabelledImage] = []
    notes: list[str] = []
    for reference in references:
        there = _task_of_unnamed(store, reference, task)
        found = labelled_in(store, [reference], there)
        if there != task:
            notes.append(f"{UNNAMED_TARGET} of {reference} is taken for {task.targets[0]}")
            found = [image.named_as(task) for image in found]
        notes += notes_on_missing(store, [reference], there)
        images += found
    return without_duplicates(images, task), notes


def _task_of_unnamed(store: FeatureStore, reference: str, task: Task) -> Task:
    """The task with its only target renamed ``mask`` if the data set's masks are unnamed; otherwise the task itself."""
    unnamed = store.collections.read(reference.partition(":")[0]).targets == (UNNAMED_TARGET,)
    return task.model_copy(update={"targets": (UNNAMED_TARGET,)}) if unnamed and len(task.targets) == 1 else task


def notes_on_missing(store: FeatureStore, references: Iterable[str], task: Task) -> list[str]:
    """Notes for the user, one line each, on photographs of some data sets (NAME or NAME:SPLIT) that lack masks.

    ``labelled_in`` leaves out photographs that lack the mask of a target. If targets overlap, it leaves out only those
    without any mask; in the others, a target without a mask counts as absent, unless no image of the data set has a
    mask of it (``LabelledImage.known``).
    """
    notes = []
    for reference in references:
        images = all_images(store, reference)
        kept = [image for image in images if task.takes(image.sample.masks)]
        for target, known in zip(task.targets, images[0].known(task), strict=True):
            if task.overlapping and not known:
                notes.append(
                    f"{reference} has no mask of {target}, only of {', '.join(images[0].targets)}: it is neither "
                    "learnt nor scored there (if none of the photographs shows it, give one of them an empty mask)"
                )
                continue
            considered, fate = (kept, "count as having none") if task.overlapping else (images, "are left out")
            without = [image.name for image in considered if target not in image.sample.masks]
            if without:
                of_target = "" if target == UNNAMED_TARGET else f" of {target}"
                notes.append(f"{_some(without, considered)} of {reference} have no mask{of_target} and {fate}")
        others = [image.name for image in images if not task.takes(image.sample.masks)]
        if task.overlapping and others:
            notes.append(f"{_some(others, images)} of {reference} have no mask and are left out")
    return notes


def _some(names: Sequence[str], among: Sequence[LabelledImage]) -> str:
    return f"{len(names)} of {len(among)} photographs ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def all_images(store: FeatureStore, reference: str) -> list[LabelledImage]:
    """All images of a data set, NAME or NAME:SPLIT, labelled or not; raises DataError if there are none."""
    name, _, split = reference.partition(":")
    return images_of(store, name, split or None)


def images_of(store: FeatureStore, dataset: str, split: str | None) -> list[LabelledImage]:
    """Like ``all_images``, with the split apart; None takes all."""
    collection = store.collections.read(dataset)
    found = _in_split(collection, split)
    if not found:
        raise DataError(f"{dataset}: no image of split {split}; splits: {_splits(collection)}")
    return found


def _in_split(collection: Collection, split: str | None) -> list[LabelledImage]:
    targets = collection.targets
    return [
        LabelledImage(collection.name, targets, sample, Key(sample.image_id))
        for sample in collection.samples
        if split in (None, sample.split)
    ]


def _splits(collection: Collection) -> str:
    return ", ".join(sorted({sample.split for sample in collection.samples if sample.split})) or "none"


def known_targets(images: Iterable[LabelledImage], task: Task) -> dict[str, list[bool]]:
    """For each data set of some images, which of a task's targets are known in it (``LabelledImage.known``)."""
    return {image.dataset: image.known(task).tolist() for image in images}


def without_duplicates(images: Iterable[LabelledImage], task: Task) -> list[LabelledImage]:
    """Each photograph once, even if it has several names; DataError if its masks of the task's targets differ."""
    first: dict[str, LabelledImage] = {}
    for image in images:
        known = first.setdefault(image.key.image_id, image)
        if known.masks_of(task) != image.masks_of(task):
            raise DataError(f"{known.name} and {image.name} are one photograph with different masks; keep one")
    return list(first.values())


def native_truth(store: FeatureStore, image: LabelledImage, task: Task) -> NDArray[np.uint8]:
    """The ground truth of an image at native size, uint8 (H, W), encoded as by ``Task.labels``."""
    masks = image.sample.masks
    return task.labels({target: store.collections.mask(masks[target]) for target in task.targets if target in masks})


def network_truth(
    store: FeatureStore, entry: FeatureEntry, image: LabelledImage, task: Task, rules: Rules
) -> NDArray[np.uint8]:
    """The ground truth of an image at the network's size, uint8 (R, R), resized as the rules say."""
    return rules.square_truth(entry.geometry, native_truth(store, image, task), task, image.sample)
