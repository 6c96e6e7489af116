"""Which images are trained on and which are validated; everything is drawn by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from interpreter.data import Labelled, labelled_in, without_duplicates
from interpreter.errors import DataError
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.views import plain_view


def few(images: Sequence[Labelled], count: int, seed: int) -> list[Labelled]:
    """So many of the images, drawn by seed; the first of 2 are those of 1, so that curves are nested.

    Raises:
        DataError: there are fewer.
    """
    if count > len(images):
        raise DataError(f"{count} labelled images were asked for, {len(images)} are there")
    ordered = sorted(images, key=lambda image: image.key.image_id)
    return [ordered[i] for i in np.random.default_rng([seed, 2]).permutation(len(ordered))[:count]]


def group_of(image: Labelled) -> tuple[str, str]:
    """Images of one group, of a patient say, never part."""
    return image.dataset, image.sample.group or image.sample.name


def split_off_few(images: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(training, validation) of a few images, whole groups: none is kept where the share is less than half of one."""
    order = [images[i] for i in np.random.default_rng([seed, len(images)]).permutation(len(images))]
    kept = {group_of(image) for image in order[: round(share * len(images))]}
    validation = [image for image in order if group_of(image) in kept]
    train = [image for image in order if group_of(image) not in kept]
    return (train, validation) if train else (order, [])


def split_off(images: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(training, validation): whole groups, drawn by seed, from every data set alike.

    At least one image of each data set goes to validation, and at least one stays.
    """
    train: list[Labelled] = []
    validation: list[Labelled] = []
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


def unaugmented(images: Iterable[Labelled], views: Sequence[str]) -> list[Labelled]:
    """Images as a training of these views validates them."""
    view = plain_view(views)
    return [image.seen_as(view) for image in images]


def validation_in(store: FeatureStore, references: Iterable[str], task: Task, views: Sequence[str]) -> list[Labelled]:
    """The labelled images of some data sets, NAME or NAME:SPLIT, as a training of these views validates them."""
    return unaugmented(labelled_in(store, references, task), views)


def split_images(
    images: list[Labelled], task: Task, settings: TrainingSettings, validation: Sequence[Labelled] | None
) -> tuple[list[Labelled], list[Labelled]]:
    """(training, validation) images of a training, read as the settings' plain view.

    Args:
        validation: those to select on, as they are; some of ``images`` if None.

    Raises:
        DataError: there are too few, or one is to be trained on and selected on.
    """
    images = unaugmented(without_duplicates(images, task), settings.views)
    if settings.labels is not None:
        images = few(images, settings.labels, settings.seed)
    if validation is not None:
        ids, groups = {image.key.image_id for image in validation}, {group_of(image) for image in validation}
        if both := [image.name for image in images if image.key.image_id in ids or group_of(image) in groups]:
            raise DataError(f"{', '.join(both[:5])}: to be trained on and validated on; leave each out of one")
        return images, list(validation)
    if settings.labels is not None:
        return split_off_few(images, settings.validation_share, settings.seed)
    train, kept = split_off(images, settings.validation_share, settings.seed)
    if not kept:
        raise DataError(f"{len(images)} image(s) are too few; one has to be kept for validation")
    return train, kept
