"""Splitting images into those to train on and those to validate on; everything is drawn by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from interpreter.data import LabelledImage, labelled_in, without_duplicates
from interpreter.errors import DataError
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.views import plain_view


def draw_subset(images: Sequence[LabelledImage], count: int, seed: int) -> list[LabelledImage]:
    """Draw ``count`` images by seed; a smaller count draws a subset of a larger one, so learning curves are nested.

    Raises:
        DataError: there are fewer images.
    """
    if count > len(images):
        raise DataError(f"expected at least {count} labelled images to draw from, found {len(images)}")
    ordered = sorted(images, key=lambda image: image.key.image_id)
    return [ordered[i] for i in np.random.default_rng([seed, 2]).permutation(len(ordered))[:count]]


def group_of(image: LabelledImage) -> tuple[str, str]:
    """The group of an image; images of one group, such as a patient, are never split up."""
    return image.dataset, image.sample.group or image.sample.name


def split_small_set(
    images: Sequence[LabelledImage], share: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """(training, validation) of a few images, in whole groups; none is validated if ``share`` is below half of one."""
    order = [images[i] for i in np.random.default_rng([seed, len(images)]).permutation(len(images))]
    kept = {group_of(image) for image in order[: round(share * len(images))]}
    validation = [image for image in order if group_of(image) in kept]
    train = [image for image in order if group_of(image) not in kept]
    return (train, validation) if train else (order, [])


def split_off(
    images: Sequence[LabelledImage], share: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """(training, validation) in whole groups, drawn by seed from each data set.

    At least one group of each data set goes to validation and at least one to training; a data set that is a single
    group goes to training.
    """
    train: list[LabelledImage] = []
    validation: list[LabelledImage] = []
    for dataset in sorted({image.dataset for image in images}):
        members = [image for image in images if image.dataset == dataset]
        groups = sorted({group_of(image) for image in members})
        if len(groups) < 2:
            train += members
            continue
        count = min(max(1, round(share * len(groups))), len(groups) - 1)
        order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
        chosen = {groups[i] for i in order[:count]}
        for image in members:
            (validation if group_of(image) in chosen else train).append(image)
    return train, validation


def unaugmented(images: Iterable[LabelledImage], views: Sequence[str]) -> list[LabelledImage]:
    """The images in the plain view of a training of ``views``, in which it validates."""
    view = plain_view(views)
    return [image.seen_as(view) for image in images]


def validation_in(
    store: FeatureStore, references: Iterable[str], task: Task, views: Sequence[str]
) -> list[LabelledImage]:
    """The labelled images of data sets, NAME or NAME:SPLIT, in the view in which a training of ``views`` validates."""
    return unaugmented(labelled_in(store, references, task), views)


def split_images(
    images: list[LabelledImage], task: Task, settings: TrainingSettings, validation: Sequence[LabelledImage] | None
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """(training, validation) images of a training, in the plain view of its settings.

    Args:
        validation: images to validate on, taken as they are; None splits off some of ``images``.

    Raises:
        DataError: there are too few images, or an image or its group is both to be trained on and validated on.
    """
    images = unaugmented(without_duplicates(images, task), settings.views)
    if settings.labels is not None:
        images = draw_subset(images, settings.labels, settings.seed)
    if validation is not None:
        ids, groups = {image.key.image_id for image in validation}, {group_of(image) for image in validation}
        if both := [image.name for image in images if image.key.image_id in ids]:
            raise DataError(f"{', '.join(both[:5])}: to be trained on and validated on; leave each out of one")
        if both := [image.name for image in images if group_of(image) in groups]:
            raise DataError(
                f"{', '.join(both[:5])}: to be trained on, and other images of their groups (patients) validated on; "
                "leave each group out of one"
            )
        return images, list(validation)
    if settings.labels is not None:
        return split_small_set(images, settings.validation_share, settings.seed)
    train, kept = split_off(images, settings.validation_share, settings.seed)
    if not kept:
        count = len({group_of(image) for image in images})
        raise DataError(
            f"{len(images)} image(s) of {count} group(s) are too few: whole groups, such as patients, are kept for "
            "validation; add another, or name other images to validate on"
        )
    return train, kept
