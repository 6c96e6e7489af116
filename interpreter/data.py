"""Labelled images of a store, ready for training and evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from interpreter.errors import ConfigurationError, TrainingDataError
from interpreter.rules import Rules
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.collection import Sample
from store.errors import MissingEntry
from store.feature_store import FeatureStore
from store.features import FeatureEntry, Features, Key
from store.spec import FeatureSpec, preprocessing_name
from store.views import FLIPS, IDENTITY, MIRRORED, plain_view


@dataclass(frozen=True)
class Labelled:
    """One image with its labels.

    Attributes:
        dataset: the collection it comes from.
        sample: its record there.
        key: its entry in the store.
    """

    dataset: str
    sample: Sample
    key: Key

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.sample.name}"

    def seen_as(self, view: str) -> Labelled:
        """The same image with the features of one of its views."""
        return replace(self, key=Key(self.key.image_id, view))


def views_read(view: str, *, mirrored: bool) -> tuple[str, ...]:
    """The views of an image that are read, where this one of it is.

    Raises:
        ConfigurationError: its mirror images are asked for, and it is not the photograph as it is.
    """
    if not mirrored:
        return (view,)
    if view != IDENTITY:
        raise ConfigurationError(f"mirror images are flips of the photograph as it is; there are none of {view}")
    return MIRRORED


def mirrored_features(store: FeatureStore, spec: FeatureSpec, image: Labelled) -> dict[str, Features]:
    """Features of an image's three mirror images, by view: what ``interpreter.prediction.predict`` reads besides.

    Raises:
        ConfigurationError: another view of the image is read.
        MissingEntry, DamagedEntry: one of them is not in the store, or no longer what was written.
    """
    views_read(image.key.view, mirrored=True)
    return {view: store.entry(spec, image.seen_as(view).key).features() for view in FLIPS}


def labelled_images(store: FeatureStore, dataset: str, split: str | None, task: Task) -> list[Labelled]:
    """The images of a collection that carry every target of the task; of overlapping targets, one at least.

    Args:
        split: only this split; None takes all.

    Raises:
        TrainingDataError: none is labelled so; names the targets there are.
    """
    collection = store.collections.read(dataset)
    in_split = [s for s in collection.samples if split is None or s.split == split]
    found = [s for s in in_split if task.takes(s.masks)]
    if not found:
        splits = sorted({s.split for s in collection.samples if s.split})
        raise TrainingDataError(
            f"{dataset}: no image of split {split or 'any'} is labelled with {', '.join(task.targets)}; targets there: "
            f"{', '.join(collection.targets) or 'none'}; splits: {', '.join(splits) or 'none'}"
        )
    return [Labelled(dataset, sample, Key(sample.image_id)) for sample in found]


def labelled_in(store: FeatureStore, references: Iterable[str], task: Task) -> list[Labelled]:
    """The labelled images of some data sets, NAME or NAME:SPLIT, each photograph once (``without_duplicates``)."""
    parts = [reference.partition(":") for reference in references]
    return labelled_at(store, [(name, split or None) for name, _, split in parts], task)


def labelled_at(store: FeatureStore, places: Iterable[tuple[str, str | None]], task: Task) -> list[Labelled]:
    """The same of (data set, split)."""
    return without_duplicates(image for place in places for image in labelled_images(store, *place, task))


def lacking(store: FeatureStore, references: Iterable[str], task: Task) -> list[str]:
    """What is to be said of photographs of some data sets, NAME or NAME:SPLIT, that lack a target: a line for each.

    ``labelled_in`` leaves them out; of overlapping targets only those that lack all, and the others are taken as
    having none of what they lack.
    """
    said = []
    for reference in references:
        images = all_images(store, reference)
        kept = [image for image in images if task.takes(image.sample.masks)]
        for target in task.targets:
            considered, fate = (kept, "count as having none") if task.overlapping else (images, "are left out")
            without = [image.name for image in considered if target not in image.sample.masks]
            if without:
                said.append(f"{_some(without, considered)} of {reference} have no mask of {target} and {fate}")
        others = [image.name for image in images if not task.takes(image.sample.masks)]
        if task.overlapping and others:
            said.append(f"{_some(others, images)} of {reference} have no mask and are left out")
    return said


def _some(names: Sequence[str], among: Sequence[Labelled]) -> str:
    return f"{len(names)} of {len(among)} photographs ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def all_images(store: FeatureStore, reference: str) -> list[Labelled]:
    """Images of NAME or NAME:SPLIT, labelled or not; TrainingDataError if there are none."""
    name, _, split = reference.partition(":")
    samples = store.collections.read(name).samples
    found = [Labelled(name, sample, Key(sample.image_id)) for sample in samples if split in ("", sample.split)]
    if not found:
        splits = sorted({sample.split for sample in samples if sample.split})
        raise TrainingDataError(f"{name}: no image of split {split}; splits: {', '.join(splits) or 'none'}")
    return found


def require_features(
    store: FeatureStore,
    spec: FeatureSpec,
    images: Sequence[Labelled],
    views: Sequence[str] = (),
    backbone: str | None = None,
) -> None:
    """TrainingDataError names every image one of whose views is not in the store under this spec.

    Args:
        views: those that are needed; that of each image's key if none is given.
        backbone: of the spec, for the command that is told; the one that the store knows if not given.
    """
    missing = [
        (image, view)
        for image in images
        for view in views or (image.key.view,)
        if not store.has(spec, Key(image.key.image_id, view))
    ]
    if missing:
        shown = ", ".join(f"{image.name} ({view})" for image, view in missing[:5])
        shown += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        names, needed = sorted({image.dataset for image, _ in missing}), list(dict.fromkeys(v for _, v in missing))
        commands = "; ".join(
            _extracting(store, spec, name, {i.sample.split for i, _ in missing if i.dataset == name}, needed, backbone)
            for name in names
        )
        first, view = missing[0]
        other = store.nearest_spec(spec, Key(first.key.image_id, view))
        differs = f"; those that are there differ in\n{spec.difference(other)}\n" if other is not None else "; "
        raise TrainingDataError(
            f"{store.location} lacks features of {shown} for spec {spec.digest[:12]}{differs}run `{commands}` first"
        )


def _extracting(
    store: FeatureStore,
    spec: FeatureSpec,
    dataset: str,
    splits: set[str | None],
    views: Sequence[str],
    backbone: str | None,
) -> str:
    """The command that makes these views: the recorded run of that data set and spec, or as much of it as is known.

    Args:
        splits: those of the images that lack them.
        backbone: of the spec; the one that the store knows if None.
    """
    for record in store.records.all():
        if record.spec == spec.digest and record.dataset == dataset:
            left_out = ("views", "limit", "images", "split")
            options = {name: value for name, value in record.options.items() if name not in left_out}
            if len(splits) == 1 and (split := next(iter(splits))) is not None:
                options["split"] = split
            break
    else:
        how = _extraction_options(spec, backbone or store.backbone_of(spec))
        options = {"dataset": f"...:{dataset}", "name": dataset, **how}
    return f"extractor run {_said(options | {'store': str(store.location), 'views': ','.join(views)})}"


def extraction_options(spec: FeatureSpec, backbone: str | None) -> str:
    """What ``extractor run`` is told to make features of this spec; ``...`` stands for what has no name."""
    return _said(_extraction_options(spec, backbone))


def _said(options: Mapping[str, str | bool]) -> str:
    """Options, True where one has no value, as a shell takes them."""
    return shlex.join(
        word
        for name, value in options.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    )


def _extraction_options(spec: FeatureSpec, backbone: str | None) -> dict[str, str | bool]:
    chosen = {
        "backbone": backbone or "...",
        "preprocessing": preprocessing_name(spec.preprocessing) or "...",
        "trajectory": spec.trajectory,
        "seed": spec.seed,
        "timesteps": ",".join(map(str, spec.timesteps)),
        "grid": ",".join(map(str, spec.grid)) if spec.grid != spec.timesteps else None,
        "blocks": ",".join(block.name.removeprefix("block_") for block in spec.blocks),
        "resolution": spec.resolution,
        "encoding": spec.encoding.kind,
        "precision": spec.precision if spec.precision != "float32" else None,
    }
    said: dict[str, str | bool] = {name: str(value) for name, value in chosen.items() if value is not None}
    return said | ({"clip": True} if spec.clip else {})


def without_duplicates(images: Iterable[Labelled]) -> list[Labelled]:
    """Each photograph once, whatever its names; TrainingDataError if its masks differ."""
    first: dict[str, Labelled] = {}
    for image in images:
        known = first.setdefault(image.key.image_id, image)
        if known.sample.masks != image.sample.masks:
            raise TrainingDataError(f"{known.name} and {image.name} are one photograph with different masks; keep one")
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


def few(images: Sequence[Labelled], count: int, seed: int) -> list[Labelled]:
    """So many of the images, drawn by seed; the first of 2 are those of 1, so that curves are nested.

    Raises:
        TrainingDataError: there are fewer.
    """
    if count > len(images):
        raise TrainingDataError(f"{count} labelled images were asked for, {len(images)} are there")
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


def seen_plainly(images: Iterable[Labelled], views: Sequence[str]) -> list[Labelled]:
    """Images as a training of these views validates them."""
    view = plain_view(views)
    return [image.seen_as(view) for image in images]


def validation_in(store: FeatureStore, references: Iterable[str], task: Task, views: Sequence[str]) -> list[Labelled]:
    """The labelled images of some data sets, NAME or NAME:SPLIT, as a training of these views validates them."""
    return seen_plainly(labelled_in(store, references, task), views)


def parted(
    images: list[Labelled], settings: TrainingSettings, validation: Sequence[Labelled] | None
) -> tuple[list[Labelled], list[Labelled]]:
    """(training, validation) images of a training, read as the settings' plain view.

    Args:
        validation: those to select on, as they are; some of ``images`` if None.

    Raises:
        TrainingDataError: there are too few, or one is to be trained on and selected on.
    """
    images = seen_plainly(without_duplicates(images), settings.views)
    if settings.labels is not None:
        images = few(images, settings.labels, settings.seed)
    if validation is not None:
        ids, groups = {image.key.image_id for image in validation}, {group_of(image) for image in validation}
        if both := [image.name for image in images if image.key.image_id in ids or group_of(image) in groups]:
            raise TrainingDataError(f"{', '.join(both[:5])}: to be trained on and validated on; leave each out of one")
        return images, list(validation)
    if settings.labels is not None:
        return split_off_few(images, settings.validation_share, settings.seed)
    train, kept = split_off(images, settings.validation_share, settings.seed)
    if not kept:
        raise TrainingDataError(f"{len(images)} image(s) are too few; one has to be kept for validation")
    return train, kept


def store_spec(store: FeatureStore, digest: str | None, images: Sequence[Labelled] = ()) -> FeatureSpec:
    """The spec that begins with ``digest``; without one, the store's only one, or its only one of these images."""
    if digest is not None:
        return store.spec(digest)
    specs = store.specs()
    if len(specs) > 1 and images:  # a service may have left features of its own model's there
        specs = [spec for spec in specs if any(store.has(spec, image.key) for image in images)] or specs
    if len(specs) == 1:
        return specs[0]
    if not specs:
        raise MissingEntry(f"{store.location}: no features here; `extractor run --dataset ... --store ...` makes them")
    listed = "; ".join(spec.said for spec in specs)
    raise MissingEntry(f"{store.location}: features of several specs are here, choose one with --spec: {listed}")
