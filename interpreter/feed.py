"""The input of a training: features of its images and their ground truth, batch by batch.

Everything that is drawn (order, views, timesteps, windows, flips) is a function of seed, epoch and position, so a
training that is resumed gets the batches it would have got without the interruption.

b  images in a batch    t  one timestep, drawn for each image    R  network's square
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from interpreter.cropping import crop_maps, crop_plane, draw_class, draw_corner, require_window
from interpreter.data import LabelledImage, native_truth
from interpreter.errors import ConfigurationError
from interpreter.network import Interpreter
from interpreter.rules import Rules
from interpreter.settings import TrainingSettings
from interpreter.standardising import MomentsCache
from interpreter.task import Task
from store.batches import Batch, Plan, plan_epoch, stream
from store.feature_store import FeatureStore
from store.features import Key
from store.views import flipped_axes

Truth = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Labels and the pixels that count, each (R, R)."""


class ProcessShard(NamedTuple):
    """The part of each batch that one of several processes learns from."""

    process: int
    processes: int

    def rows(self, images: int) -> list[int]:
        """Indices of the images of a batch that belong to this process."""
        return list(range(self.process, images, self.processes))

    def weight(self, images: int) -> float:
        """Weight of this process's mean loss, so that all images of a batch count alike however they are shared out."""
        return len(self.rows(images)) * self.processes / images


class LoadedBatch(NamedTuple):
    """A batch as the network reads it, and its ground truth.

    Attributes:
        maps: {block: (b, c, h, w)}; (b, t, c, h, w) for heads that read all timesteps.
        t: timesteps, (b,) or (b, t).
        truth: uint8 (b, R, R) as made by ``Task.labels``; smaller if windows are drawn.
        inside: bool, of the same shape; the pixels that count.
        known: bool (b, n - 1), whether it is known where each class but the background is in an image.
    """

    maps: dict[str, torch.Tensor]
    t: torch.Tensor
    truth: torch.Tensor
    inside: torch.Tensor
    known: torch.Tensor


class Feed:
    """Feeds a training its images, batch by batch.

    Args:
        network: the network that is trained; decodes its own maps.
        store: holds features and masks.
        task: what is segmented.
        images: the training images; each is drawn once in an epoch, and what is drawn depends on their order.
        settings: settings of the training.
        rules: how the ground truth is made, and which pixels count.
        shard: the part of each batch that this process learns from.

    Raises:
        ConfigurationError: the network cannot read windows of this size, or ``foreground`` is set without ``crop``.
    """

    def __init__(
        self,
        network: Interpreter,
        store: FeatureStore,
        task: Task,
        images: Sequence[LabelledImage],
        settings: TrainingSettings,
        rules: Rules,
        shard: ProcessShard,
    ) -> None:
        self._network, self._store, self._task, self._images = network, store, task, images
        self._settings, self._rules, self.shard = settings, rules, shard
        self._spec = network.spec
        self._moments_cache = MomentsCache(network.moments, lambda key: store.entry(self._spec, key).fov)
        self._truths: dict[str, Truth] = {}
        self._known: dict[str, NDArray[np.bool_]] = {}
        if settings.crop is not None:
            require_window(settings.crop, network.head.stride, self._spec.resolution)
        elif settings.foreground:
            raise ConfigurationError("foreground is a share of the windows: set crop, the side of a window, too")

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self._images) // self._settings.batch)

    def load_truth(self, image: LabelledImage, native: NDArray[np.uint8] | None = None) -> None:
        """Load an image's ground truth before it is fed: its masks, or ``native``, uint8 (H, W), in their place."""
        image_id, of_masks = image.key.image_id, image.known(self._task)
        self._truths[image_id] = self._truth_of(image, native)
        self._known[image_id] = of_masks if native is None else np.ones_like(of_masks)

    def _truth_of(self, image: LabelledImage, native: NDArray[np.uint8] | None = None) -> Truth:
        """Ground truth and counted pixels of an image; made from its masks, or from ``native``, uint8 (H, W)."""
        entry = self._store.entry(self._spec, image.key)
        if native is None:
            native = native_truth(self._store, image, self._task)
        truth = self._rules.square_truth(entry.geometry, native, self._task, image.sample)
        return truth, self._rules.counted(entry.fov)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, from batch ``start`` on."""
        settings = self._settings
        drawn = np.random.default_rng([settings.seed, epoch, 1]).choice(settings.views, size=len(self._images))
        keys = [Key(i.key.image_id, str(view)) for i, view in zip(self._images, drawn, strict=True)]
        one = not self._network.head.all_timesteps
        plans = plan_epoch(self._spec, keys, settings.batch, seed=settings.seed, epoch=epoch, one_timestep=one)
        return stream(self._store, self._spec, [self._share_of(plan) for plan in plans], start=start)

    def _share_of(self, plan: Plan) -> Plan:
        """This process's images of a batch; if none, one of weight 0, so that all processes take the same steps."""
        rows = self.shard.rows(len(plan.keys)) or [0]
        return Plan(tuple(plan.keys[row] for row in rows), plan.timesteps[rows])

    def weight(self, position: int) -> float:
        """Weight of this process's mean loss of a batch (``ProcessShard.weight``)."""
        images = min(self._settings.batch, len(self._images) - position * self._settings.batch)
        return self.shard.weight(images)

    def load(self, batch: Batch, epoch: int) -> LoadedBatch:
        """Decode, crop and flip a batch, seeded by its epoch and position, and augment it with torch's generator."""
        steps: slice | int = slice(None) if self._network.head.all_timesteps else 0
        batch = batch._replace(maps={name: m[:, steps] for name, m in batch.maps.items()})
        moments = self._moments_cache.of(batch) if self._network.config.standardise else None
        batch, truths = self._windows(batch, epoch)
        maps = self._network.decoded(batch.maps, moments)
        device = self._network.device
        truth = torch.from_numpy(np.stack([labels for labels, _ in truths])).to(device)
        inside = torch.from_numpy(np.stack([inside for _, inside in truths])).to(device)
        if self._settings.flips:
            random = np.random.default_rng([self._settings.seed, epoch, batch.position])
            axes = [a for a, flip in zip((-1, -2), random.random(2) < 0.5, strict=True) if flip]
            maps = {name: m.flip(axes) for name, m in maps.items()}
            truth, inside = truth.flip(axes), inside.flip(axes)
        t = torch.from_numpy(batch.timesteps[:, steps]).to(device)
        known = torch.from_numpy(np.stack([self._known[key.image_id] for key in batch.keys])).to(device)
        return LoadedBatch(self._network.head.augment(maps), t, truth, inside, known)

    def truths(self, batch: Batch) -> list[Truth]:
        """Ground truth and counted pixels of every image of a batch, flipped as its view is."""
        flipped = []
        for key in batch.keys:
            labels, inside = self._truths[key.image_id]
            axes = flipped_axes(key.view)
            flipped.append((np.flip(labels, axes), np.flip(inside, axes)))
        return flipped

    def _windows(self, batch: Batch, epoch: int) -> tuple[Batch, list[Truth]]:
        """Cut one window out of each image's maps and ground truth, if the settings ask for windows."""
        truths, side = self.truths(batch), self._settings.crop
        if side is None:
            return batch, truths
        step = self._network.head.stride
        random = np.random.default_rng([self._settings.seed, epoch, batch.position, self.shard.process, 3])
        corners = [draw_corner(self._centres(*truth, random), side, step, random) for truth in truths]
        maps = crop_maps(batch.maps, corners, side, self._spec.resolution)
        windows = [
            (crop_plane(labels, corner, side), crop_plane(inside, corner, side))
            for (labels, inside), corner in zip(truths, corners, strict=True)
        ]
        return batch._replace(maps=maps), windows

    def _centres(
        self, labels: NDArray[np.uint8], inside: NDArray[np.bool_], random: np.random.Generator
    ) -> NDArray[np.bool_]:
        """The pixels that the window of an image may be centred on, bool (R, R)."""
        share = self._settings.foreground
        if share and random.random() < share:
            return draw_class(self._task.members(labels), inside, random)
        return inside
