"""Training an interpreter from the features and masks in a store.

b  images in a batch    t  one timestep, drawn for each image    n  classes    R  network's square

Everything that is drawn (order, timesteps, flips) is a function of seed, epoch and position, so a
run that was stopped goes on exactly as it would have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from interpreter.checkpoint import Card, save_interpreter
from interpreter.data import (
    Labelled,
    native_truth,
    network_truth,
    require_features,
    split_off,
    without_duplicates,
)
from interpreter.errors import ConfigurationError, TrainingDataError
from interpreter.evaluation import evaluate
from interpreter.network import Interpreter, InterpreterConfig
from interpreter.task import Task
from store.batches import Batch, plan_epoch, stream
from store.feature_store import FeatureStore
from store.features import Key
from store.spec import FeatureSpec
from store.views import IDENTITY, flipped_axes

STATE_FILE = "state.pt"


class TrainingSettings(BaseModel):
    """One training; the paper's values are the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(default=4, gt=0)
    epochs: int = Field(default=100, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    decay: Literal["none", "cosine"] = "none"
    flips: bool = Field(default=True, description="flip cached maps at random")
    views: tuple[str, ...] = Field(default=(IDENTITY,), min_length=1, description="drawn from for each image")
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    evaluate_every: int = Field(default=5, gt=0, description="epochs between validations")
    patience: int | None = Field(default=None, gt=0, description="validations without gain before stopping")
    seed: int = 0


Report = Callable[[int, int, float], None]


class Training:
    """One run in one folder: ``run`` starts it or goes on where it stopped.

    Args:
        store: holds features and masks of all images.
        spec: the features to read.
        task: what is segmented.
        images: labelled images of the SOURCE data sets; some are split off for validation.
        config: of the network.
        settings: of the training.
        folder: receives the best interpreter, the state to resume from, and tensorboard/.
        backbone: name or place of the backbone, for the card.
        device: where the network is trained.

    Raises:
        TrainingDataError: features are missing, or there are too few images.
    """

    def __init__(
        self,
        store: FeatureStore,
        spec: FeatureSpec,
        task: Task,
        images: list[Labelled],
        config: InterpreterConfig,
        settings: TrainingSettings,
        folder: Path,
        backbone: str = "small",
        device: str = "cpu",
    ) -> None:
        if config.classes != len(task.classes):
            raise ConfigurationError(f"the task has {len(task.classes)} classes, the network {config.classes}")
        images = without_duplicates(images)
        self.train_images, self.validation_images = split_off(images, settings.validation_share, settings.seed)
        require_features(store, spec, self.train_images, settings.views)
        require_features(store, spec, self.validation_images)
        if not self.validation_images:
            raise TrainingDataError(f"{len(images)} image(s) are too few; one has to be kept for validation")
        self.store, self.spec, self.task, self.settings, self.folder = store, spec, task, settings, folder
        self._truths = {image.key.image_id: self._truth(image) for image in self.train_images}
        torch.manual_seed(settings.seed)
        self.device = torch.device(device)
        self.network = Interpreter(spec, config, store.codebook(spec)).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self._card = Card(
            spec=spec,
            backbone=backbone,
            task=task,
            config=config,
            training_ids=tuple(image.key.image_id for image in self.train_images),
            validation_ids=tuple(image.key.image_id for image in self.validation_images),
            training=settings.model_dump(mode="json"),
        )
        self.epoch, self.next_batch, self.best, self.since_best = 0, 0, -1.0, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._require_same_run()
        self._resume()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train_images) // self.settings.batch)

    def run(self, report: Report | None = None) -> float:
        """Train to the last epoch or until validation stops improving; returns the best validation Dice.

        Args:
            report: called with epoch, batch and loss after each step.
        """
        from torch.utils.tensorboard import SummaryWriter  # imported late: takes a second

        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            while self.epoch < self.settings.epochs and not self._out_of_patience():
                try:
                    self._run_epoch(writer, report)
                except KeyboardInterrupt:
                    self._save_state()
                    raise
                self.epoch, self.next_batch = self.epoch + 1, 0
                if self.epoch % self.settings.evaluate_every == 0 or self.epoch == self.settings.epochs:
                    self._validate(writer)
                self._save_state()
        return self.best

    def _run_epoch(self, writer: Any, report: Report | None) -> None:
        for batch in self._batches():
            loss = self._step(batch)
            self.next_batch = batch.position + 1
            writer.add_scalar("loss", loss, self.epoch * self.steps_per_epoch + batch.position)
            if report is not None:
                report(self.epoch, batch.position, loss)

    def _batches(self) -> Iterator[Batch]:
        drawn = np.random.default_rng([self.settings.seed, self.epoch, 1]).choice(
            self.settings.views, size=len(self.train_images)
        )
        keys = [Key(i.key.image_id, str(view)) for i, view in zip(self.train_images, drawn, strict=True)]
        plans = plan_epoch(
            self.spec, keys, self.settings.batch, seed=self.settings.seed, epoch=self.epoch, one_timestep=True
        )
        return stream(self.store, self.spec, plans, start=self.next_batch)

    def _step(self, batch: Batch) -> float:
        codec = self.network.codec
        maps = {name: codec.decode(name, m[:, 0], self.device) for name, m in batch.maps.items()}
        truths = self.truths(batch)
        labels = torch.from_numpy(np.stack([labels for labels, _ in truths])).to(self.device).long()
        inside = torch.from_numpy(np.stack([inside for _, inside in truths])).to(self.device)
        if self.settings.flips:
            random = np.random.default_rng([self.settings.seed, self.epoch, batch.position])
            axes = [a for a, flip in zip((-1, -2), random.random(2) < 0.5, strict=True) if flip]
            maps = {name: m.flip(axes) for name, m in maps.items()}
            labels, inside = labels.flip(axes), inside.flip(axes)
        self._set_learning_rate(batch.position)
        self.network.train()
        logits = self.network(maps, torch.from_numpy(batch.timesteps[:, 0]).to(self.device))
        loss = segmentation_loss(logits, labels, inside)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def truths(self, batch: Batch) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        """Labels and field of view, each (R, R), of every image of a batch, flipped as its view is."""
        flipped = []
        for key in batch.keys:
            labels, inside = self._truths[key.image_id]
            axes = flipped_axes(key.view)
            flipped.append((np.flip(labels, axes), np.flip(inside, axes)))
        return flipped

    def _set_learning_rate(self, batch_index: int) -> None:
        done = (self.epoch + batch_index / self.steps_per_epoch) / self.settings.epochs
        factor = 0.5 * (1 + math.cos(math.pi * done)) if self.settings.decay == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def _validate(self, writer: Any) -> None:
        scores = evaluate(self.network, self.store, self.spec, self.task, self.validation_images)
        dice = scores.mean_dice
        writer.add_scalar("validation_dice", dice, self.epoch)
        if dice > self.best:
            self.best, self.since_best = dice, 0
            metrics = {"validation_dice": round(dice, 4), "epoch": self.epoch}
            save_interpreter(self.folder, self.network, self._card.model_copy(update={"metrics": metrics}))
        else:
            self.since_best += 1

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.since_best >= self.settings.patience

    def _truth(self, image: Labelled) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Labels (R, R) and field of view (R, R)."""
        entry = self.store.entry(self.spec, image.key)
        return network_truth(entry, native_truth(self.store, image, self.task)), entry.fov

    def _save_state(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.epoch, self.next_batch, self.best, self.since_best],
        }
        partial = self.folder / f"{STATE_FILE}.tmp"
        torch.save(state, partial)
        partial.rename(self.folder / STATE_FILE)

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.next_batch, self.best, self.since_best = state["progress"]

    def _require_same_run(self) -> None:
        """A folder belongs to one spec, task, network, training and set of images."""
        path = self.folder / "run.json"
        mine = self._card.model_dump(mode="json")
        if path.is_file():
            theirs = json.loads(path.read_text())
            if differing := [field for field in mine if mine[field] != theirs.get(field)]:
                raise ConfigurationError(
                    f"{self.folder} holds a training with other {', '.join(differing)}; "
                    "choose another folder to start anew"
                )
        path.write_text(json.dumps(mine, indent=2) + "\n")


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice of the foreground classes, of the pixels inside the field of view.

    Args:
        logits: (b, n, R, R).
        labels: int64 (b, R, R).
        inside: bool (b, R, R).
    """
    from monai.losses import DiceCELoss  # imported late: takes ten seconds

    scores = logits.permute(1, 0, 2, 3)[:, inside][None]  # (1, n, pixels)
    loss: torch.Tensor = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(
        scores, labels[inside][None, None]
    )
    return loss
