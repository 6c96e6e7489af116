"""Labelled images of a store, ready for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from interpreter.errors import DataError
from interpreter.rules import Rules
from interpreter.task import Task
from store.collection import UNNAMED_TARGET, Sample
from store.feature_store import FeatureStore
from store.features import FeatureEntry, Key


@dataclass(frozen=True)
class Labelled:
    """One image with its labels.

    Attributes:
        dataset: the collection it comes from.
        targets: that some image of the collection has a mask of.
        sample: its record there.
        key: its entry in the store.
    """

    dataset: str
    targets: tuple[str, ...]
    sample: Sample
    key: Key

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.sample.name}"

    def known(self, task: Task) -> NDArray[np.bool_]:
        """Bool (n - 1): of which of a task's targets it is known where they are in this image.

        Those that its data set has masks of: without one of its own the image has none of it. Where the others are
        nobody has said: of these nothing is learnt, and nothing scored.
        """
        return np.isin(task.targets, self.targets)

    def masks_of(self, task: Task) -> tuple[str | None, ...]:
        """The digest of its mask of each of a task's targets; None where it has none."""
        return tuple(self.sample.masks.get(target) for target in task.targets)

    def seen_as(self, view: str) -> Labelled:
        """The same image with the features of one of its views."""
        return replace(self, key=Key(self.key.image_id, view))

    def named_as(self, task: Task) -> Labelled:
        """The same image, its only mask taken for that of a task's only target."""
        (target,), (mask,) = task.targets, self.sample.masks.values()
        named = {"masks": {target: mask}, "indexed": (target,) * len(self.sample.indexed)}
        return replace(self, targets=task.targets, sample=self.sample.model_copy(update=named))


def labelled_images(store: FeatureStore, dataset: str, split: str | None, task: Task) -> list[Labelled]:
    """The images of a collection that carry every target of the task; of overlapping targets, one at least.

    Args:
        split: only this split; None takes all.

    Raises:
        DataError: none is labelled so; names the targets there are.
    """
    collection = store.collections.read(dataset)
    in_split = [s for s in collection.samples if split is None or s.split == split]
    found = [s for s in in_split if task.takes(s.masks)]
    if not found:
        splits = sorted({s.split for s in collection.samples if s.split})
        raise DataError(
            f"{dataset}: no image{f' of split {split}' if split else ''} is labelled with {', '.join(task.targets)}; "
            f"targets there: {', '.join(collection.targets) or 'none'}; splits: {', '.join(splits) or 'none'} (a "
            "folder's targets are the folders of masks/: masks/vessel/a.png is the target vessel of a.png)"
        )
    targets = collection.targets
    return [Labelled(dataset, targets, sample, Key(sample.image_id)) for sample in found]


def labelled_in(store: FeatureStore, references: Iterable[str], task: Task) -> list[Labelled]:
    """The labelled images of some data sets, NAME or NAME:SPLIT, each photograph once (``without_duplicates``)."""
    parts = [reference.partition(":") for reference in references]
    return labelled_at(store, [(name, split or None) for name, _, split in parts], task)


def labelled_at(store: FeatureStore, places: Iterable[tuple[str, str | None]], task: Task) -> list[Labelled]:
    """The same of (data set, split)."""
    return without_duplicates((image for place in places for image in labelled_images(store, *place, task)), task)


def labelled_for(store: FeatureStore, references: Iterable[str], task: Task) -> tuple[list[Labelled], list[str]]:
    """``labelled_in`` for those who compare what an interpreter of the task finds, and what is to be said of them.

    The masks of a folder without folders for targets are ``mask``, whatever they show: here the task's target, where it
    has one alone.
    """
    images: list[Labelled] = []
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
    """The task with the name that a data set has for its only target, where that says nothing; else as it is."""
    unnamed = store.collections.read(reference.partition(":")[0]).targets == (UNNAMED_TARGET,)
    return task.model_copy(update={"targets": (UNNAMED_TARGET,)}) if unnamed and len(task.targets) == 1 else task


def notes_on_missing(store: FeatureStore, references: Iterable[str], task: Task) -> list[str]:
    """What is to be said of photographs of some data sets, NAME or NAME:SPLIT, that lack a target: a line for each.

    ``labelled_in`` leaves them out; of overlapping targets only those that lack all, and the others are taken as
    having none of what they lack, unless their whole data set lacks it (``Labelled.known``).
    """
    notes = []
    for reference in references:
        images = all_images(store, reference)
        kept = [image for image in images if task.takes(image.sample.masks)]
        for target, known in zip(task.targets, images[0].known(task), strict=True):
            if task.overlapping and not known:
                notes.append(
                    f"{reference} has no mask of {target}, but of {', '.join(images[0].targets)}: nothing is learnt or "
                    "scored of it there (an empty mask of one photograph says that there is none)"
                )
                continue
            considered, fate = (kept, "count as having none") if task.overlapping else (images, "are left out")
            without = [image.name for image in considered if target not in image.sample.masks]
            if without:
                notes.append(f"{_some(without, considered)} of {reference} have no mask of {target} and {fate}")
        others = [image.name for image in images if not task.takes(image.sample.masks)]
        if task.overlapping and others:
            notes.append(f"{_some(others, images)} of {reference} have no mask and are left out")
    return notes


def _some(names: Sequence[str], among: Sequence[Labelled]) -> str:
    return f"{len(names)} of {len(among)} photographs ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def all_images(store: FeatureStore, reference: str) -> list[Labelled]:
    """Images of NAME or NAME:SPLIT, labelled or not; DataError if there are none."""
    name, _, split = reference.partition(":")
    collection = store.collections.read(name)
    targets, samples = collection.targets, collection.samples
    found = [Labelled(name, targets, sample, Key(sample.image_id)) for sample in samples if split in ("", sample.split)]
    if not found:
        splits = sorted({sample.split for sample in samples if sample.split})
        raise DataError(f"{name}: no image of split {split}; splits: {', '.join(splits) or 'none'}")
    return found


def without_duplicates(images: Iterable[Labelled], task: Task) -> list[Labelled]:
    """Each photograph once, whatever its names; DataError if its masks of the task differ."""
    first: dict[str, Labelled] = {}
    for image in images:
        known = first.setdefault(image.key.image_id, image)
        if known.masks_of(task) != image.masks_of(task):
            raise DataError(f"{known.name} and {image.name} are one photograph with different masks; keep one")
    return list(first.values())


def native_truth(store: FeatureStore, image: Labelled, task: Task) -> NDArray[np.uint8]:
    """What ``Task.labels`` makes of an image's masks, uint8 (H, W)."""
    masks = image.sample.masks
    return task.labels({target: store.collections.mask(masks[target]) for target in task.targets if target in masks})


def network_truth(
    store: FeatureStore, entry: FeatureEntry, image: Labelled, task: Task, rules: Rules
) -> NDArray[np.uint8]:
    """The same at the network's size, uint8 (R, R), as the rules have it."""
    return rules.square_truth(entry.geometry, native_truth(store, image, task), task, image.sample)
