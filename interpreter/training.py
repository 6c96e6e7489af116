"""Training an interpreter from the features and masks in a store.

b  images in a batch    t  one timestep, drawn for each image    n  classes    R  network's square

Everything that is drawn (order, views, timesteps, flips, dropped paths) is a function of seed, epoch
and position, so a run that is resumed continues exactly as it would have without the interruption. Under
``accelerate launch`` several processes share each batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from interpreter.checkpoint import UNLICENSED, Card
from interpreter.config import InterpreterConfig
from interpreter.data import LabelledImage, known_targets
from interpreter.errors import ConfigurationError, NonFinitePrediction, TrainingDiverged
from interpreter.feed import Feed, ProcessShard
from interpreter.network import Interpreter
from interpreter.objective import Objective
from interpreter.pseudo_labels import PseudoLabels
from interpreter.recorder import Recorder
from interpreter.rules import STRICT, Rules
from interpreter.run_folder import RunFolder
from interpreter.scan import Method
from interpreter.selection import Selection
from interpreter.settings import PseudoLabelled, TrainingRecord, TrainingSettings
from interpreter.splits import split_images
from interpreter.stored import require_features
from interpreter.task import Task
from store.batches import Batch
from store.feature_store import FeatureStore
from store.features import entry_path
from store.interrupts import Stop
from store.memory import HeapTrimmer, keep_freed_memory
from store.spec import FeatureSpec
from store.views import plain_view

Report = Callable[[int, int, float], None]


class Training:
    """One training run in one folder; ``run`` starts it, or resumes it where it stopped.

    Args:
        store: holds features and masks of all images.
        spec: the features to read.
        task: what is segmented.
        images: labelled images of the SOURCE data sets; some are split off for validation.
        config: configuration of the network.
        settings: settings of the training.
        folder: receives the best interpreter, the state to resume from, and tensorboard/.
        backbone: name or location of the backbone, recorded in the card.
        device: where the network is trained.
        rules: how the ground truth is made, and which pixels count.
        validation: select on these images instead of some of ``images``.
        pseudo_labels: unlabelled photographs to train on as well, with the teacher that labels them.
        scan: implementation of the selective scan; ``auto`` chooses one by the device.
        licence: licence of the weights, recorded in the card.

    Attributes:
        data_wait_share: share of the last epoch's time that was spent waiting for features, 0..1.

    Raises:
        DataError: features are missing, or there are too few images.
        ConfigurationError: task and network differ in their classes, the network cannot read windows of this size, or
            the folder holds another training.
        CheckpointError: a file in the folder is damaged.
    """

    def __init__(
        self,
        store: FeatureStore,
        spec: FeatureSpec,
        task: Task,
        images: list[LabelledImage],
        config: InterpreterConfig,
        settings: TrainingSettings,
        folder: Path,
        backbone: str,
        device: str = "cpu",
        *,
        rules: Rules = STRICT,
        validation: Sequence[LabelledImage] | None = None,
        pseudo_labels: PseudoLabels | None = None,
        scan: Method = "auto",
        licence: str = UNLICENSED,
    ) -> None:
        if config.classes != len(task.classes):
            raise ConfigurationError(f"the task has {len(task.classes)} classes, the network {config.classes}")
        if config.overlapping != task.overlapping:
            raise ConfigurationError("classes overlap in the task or in the network, not in both")
        self.store, self.spec, self.task, self.settings, self.folder = store, spec, task, settings, folder
        self.rules = rules
        labelled, validation_images = split_images(images, task, settings, validation)
        unlabelled = [] if pseudo_labels is None else pseudo_labels.excluding(labelled, validation_images)
        self.train_images = [*labelled, *unlabelled]
        self._pseudo_labelled, self._pseudo_labels = unlabelled, pseudo_labels
        read = dict.fromkeys((plain_view(settings.views), *settings.views))
        require_features(store, spec, self.train_images, tuple(read))
        require_features(store, spec, validation_images)
        launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
        # A process has one accelerator state for good: alone, it must not settle on the device of its first training.
        self.accelerator = Accelerator(cpu=launched and device == "cpu")
        self.device = self.accelerator.device if launched else torch.device(device)
        torch.manual_seed(settings.seed)
        self.network = Interpreter(spec, config, store.codebook(spec)).to(self.device)
        self.network.use_scan(scan)
        share = ProcessShard(self.accelerator.process_index, int(self.accelerator.num_processes))
        self.feed = Feed(self.network, store, task, self.train_images, settings, self.rules, share)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self._objective, self._stepper = self.accelerator.prepare(
            Objective(self.network, task, settings.precision), self.optimizer, device_placement=[False, False]
        )
        card = self._card(config, backbone, licence, validation_images)
        self.selection = Selection(folder, card, store, validation_images, self.rules)
        self.epoch = self.next_batch = 0
        self._in_step = self._is_prepared = False
        self.data_wait_share = 0.0
        self._files = RunFolder(folder)
        self._trimmer = HeapTrimmer() if self.device.type == "cpu" else None
        if self.accelerator.is_main_process:
            self._files.require_same_run(self._run_identity(card))
        self._resume()

    def _card(
        self, config: InterpreterConfig, backbone: str, licence: str, validation_images: Sequence[LabelledImage]
    ) -> Card:
        pseudo_labels = None
        if self._pseudo_labels is not None:
            taught = tuple(image.key.image_id for image in self._pseudo_labelled)
            pseudo_labels = PseudoLabelled(
                teacher=self._pseudo_labels.teacher, images=taught, teacher_images=self._pseudo_labels.teacher_images
            )
        return Card(
            spec=self.spec,
            backbone=backbone,
            task=self.task,
            config=config,
            training_ids=tuple(image.key.image_id for image in self.train_images),
            validation_ids=tuple(image.key.image_id for image in validation_images),
            training=TrainingRecord(**dict(self.settings), rules=self.rules, pseudo_labels=pseudo_labels),
            licence=licence,
        )

    @property
    def validation_images(self) -> Sequence[LabelledImage]:
        """The images that the interpreter is selected on."""
        return self.selection.images

    @property
    def epochs(self) -> int:
        """Number of epochs in the whole training."""
        steps = self.settings.steps
        return self.settings.epochs if steps is None else -(-steps // self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.feed.steps_per_epoch

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or validation stopped improving."""
        patience = self.settings.patience
        return self.epoch >= self.epochs or (patience is not None and self.selection.since_best >= patience)

    def run(self, report: Report | None = None, stop: Stop | None = None) -> float:
        """Train to the last epoch or until validation stops improving; return the validation Dice of what was kept.

        The interpreter with the best ``Scores.criterion`` is kept. Without validation images it is the one of the last
        epoch, whose Dice is not known (nan).

        Args:
            report: called with epoch, batch and loss after each batch.
            stop: checked after each batch; if it is requested, the state is saved and KeyboardInterrupt raised. Several
                processes could not agree on a batch to stop at: they ignore it, and resume from the end of the last
                epoch that they completed.

        Raises:
            TrainingDiverged: the loss, or the network's output for a validation image, became NaN or infinite.
            MissingEntry, DamagedEntry: features or masks are gone, or no longer what was written.
            KeyboardInterrupt: a stop was requested.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        self.prepare()
        if not self.is_finished:
            with Recorder(self.folder if self.accelerator.is_main_process else None) as recorder:
                self._run_epochs(recorder, report, stop)
        dice = [math.nan]
        if self.accelerator.is_main_process:
            self.selection.finish(str(self.device))
            dice = [self.selection.kept_dice()]
        self.accelerator.wait_for_everyone()
        return float(broadcast_object_list(dice)[0])

    def prepare(self) -> None:
        """Load the masks of all images, and have the teacher label those without, once; ``run`` calls this first."""
        if self._is_prepared or self.is_finished:
            return
        taught = {image.key.image_id for image in self._pseudo_labelled}
        for image in self.train_images:
            if image.key.image_id not in taught:
                self.feed.load_truth(image)
        if self._pseudo_labels is not None:
            for image, native in self._pseudo_labels.label(self._pseudo_labelled, self.device):
                self.feed.load_truth(image, native)
        self._is_prepared = True

    def _run_epochs(self, recorder: Recorder, report: Report | None, stop: Stop | None) -> None:
        while not self.is_finished:
            try:
                self._run_epoch(recorder, report, stop)
            except KeyboardInterrupt:
                # In the middle of a step gradients are only partly accumulated, and each of several processes has
                # gradients of its own: the state that was saved last then stays valid.
                if not self._in_step and self.accelerator.num_processes == 1:
                    self._save_state()
                raise
            self.epoch, self.next_batch = self.epoch + 1, 0
            if self.epoch % self.settings.evaluate_every == 0 or self.epoch == self.epochs:
                self._validate(recorder)
            self._save_state()

    def _run_epoch(self, recorder: Recorder, report: Report | None, stop: Stop | None) -> None:
        started, waited, ready = time.perf_counter(), 0.0, time.perf_counter()
        for batch in self.feed.batches(self.epoch, self.next_batch):
            waited += time.perf_counter() - ready
            for image in self.validation_images:  # read after some epochs; until then nobody may remove them
                self.store.uses.stamp(entry_path(self.spec, image.key))
            loss = self._step(batch)
            if self._trimmer is not None:
                self._trimmer.trim_if_fragmented()
            recorder.loss(loss, self.epoch * self.steps_per_epoch + batch.position)
            if report is not None:
                report(self.epoch, batch.position, loss)
            if stop is not None and stop.requested and self.accelerator.num_processes == 1:
                raise KeyboardInterrupt
            ready = time.perf_counter()
        self.data_wait_share = waited / (time.perf_counter() - started)
        recorder.epoch(self.epoch, self.data_wait_share, self.optimizer.param_groups[0]["lr"])

    def _step(self, batch: Batch) -> float:
        """Learn from one batch; the weights change once ``accumulate`` batches have been seen."""
        self._in_step = True
        loss = self._learn(batch)
        self.next_batch, self._in_step = batch.position + 1, False
        return loss

    def _learn(self, batch: Batch) -> float:
        torch.manual_seed(_drawn_seed(self.settings.seed, self.epoch, batch.position, self.accelerator.process_index))
        loaded = self.feed.load(batch, self.epoch)
        self._set_learning_rate(batch.position)
        self.network.train()
        accumulate = self.settings.accumulate
        first = batch.position // accumulate * accumulate
        together = min(accumulate, self.steps_per_epoch - first)  # the last step of an epoch may have fewer
        full = batch.position + 1 == first + together
        with self.accelerator.no_sync(self._objective) if not full else nullcontext():
            loss = self._objective(*loaded) * self.feed.weight(batch.position)
            self.accelerator.backward(loss / together)
        if full:
            self._stepper.step()
            self._stepper.zero_grad()
        shared = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(shared):
            raise TrainingDiverged(
                f"the loss became {shared} in batch {batch.position + 1} of epoch {self.epoch + 1}; start anew with a "
                "lower learning rate or without mixed precision"
            )
        return shared

    def _set_learning_rate(self, batch_index: int) -> None:
        done = (self.epoch + batch_index / self.steps_per_epoch) / self.epochs
        factor = 0.5 * (1 + math.cos(math.pi * done)) if self.settings.decay == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def _validate(self, recorder: Recorder) -> None:
        """Score the network on the validation images, in the first process alone; keep it if it is the best."""
        criterion = [0.0]
        if self.accelerator.is_main_process:
            try:
                criterion = [self.selection.criterion(self.network, self.epoch, recorder)]
            except NonFinitePrediction as error:
                raise TrainingDiverged(f"after epoch {self.epoch}, {error}") from error
        if self.selection.update(float(broadcast_object_list(criterion)[0])) and self.accelerator.is_main_process:
            self.selection.keep(self.network, self.epoch)

    def _run_identity(self, card: Card) -> dict[str, Any]:
        """What decides a training: its card, the masks, which targets are known, and the number of processes.

        Of the card, the scores and the licence are left out, and what follows from the teacher.
        """
        derived: Any = {"metrics": True, "licence": True, "training": {"pseudo_labels": {"teacher_images"}}}
        described = card.model_dump(mode="json", exclude=derived)
        images = [*self.train_images, *self.validation_images]
        masks = json.dumps([image.truth_facts(self.task, self.rules) for image in images])
        return described | {
            "masks": hashlib.sha256(masks.encode()).hexdigest(),
            "known": known_targets(images, self.task),
            "processes": self.accelerator.num_processes,
        }

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            self._files.save_state(
                {
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "gradients": [p.grad for p in self.network.parameters()],
                    "progress": [self.epoch, self.next_batch, self.selection.best, self.selection.since_best],
                }
            )

    def _resume(self) -> None:
        state = self._files.load_state()
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(self.device)
            self.epoch, self.next_batch, self.selection.best, self.selection.since_best = state["progress"]


def _drawn_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
