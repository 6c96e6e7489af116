"""Training an interpreter from the features and masks in a store.

b  images in a batch    t  one timestep, drawn for each image    n  classes    R  network's square

Everything that is drawn (order, views, timesteps, flips, dropped paths) is a function of seed, epoch
and position, so a run that was stopped goes on exactly as it would have. Under ``accelerate launch``
several processes share each batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from interpreter.calibration import fit_temperature
from interpreter.checkpoint import Card, load_interpreter, read_card, save_interpreter, write_card
from interpreter.cropping import crop_maps, crop_plane, draw_class, draw_corner, require_window
from interpreter.data import Labelled, native_truth, parted, require_features
from interpreter.domain import DOMAIN_FILE, LEAST, domain_of
from interpreter.errors import ConfigurationError, TrainingDiverged
from interpreter.evaluation import evaluate
from interpreter.network import Interpreter, InterpreterConfig
from interpreter.objective import Objective
from interpreter.pseudo_labels import PseudoLabels
from interpreter.recorder import Recorder
from interpreter.rules import Rules
from interpreter.run_folder import RunFolder
from interpreter.scan import Method
from interpreter.settings import TrainingSettings as TrainingSettings
from interpreter.standardising import KnownMoments
from interpreter.task import Task
from store.batches import Batch, Plan, plan_epoch, stream
from store.feature_store import FeatureStore
from store.features import Key
from store.interrupts import Stop
from store.memory import Holes, keep_freed_memory
from store.spec import FeatureSpec
from store.views import flipped_axes

Report = Callable[[int, int, float], None]
Truth = tuple[NDArray[np.uint8], NDArray[np.bool_]]


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
        rules: how the truth is made, and which pixels count.
        validation: select on these images instead of some of ``images``.
        pseudo_labels: unlabelled photographs to train on besides, and what a teacher makes of them.
        scan: force a selective scan.

    Attributes:
        data_wait_share: of the last epoch's time, what went by waiting for features.

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
        *,
        rules: Rules | None = None,
        validation: Sequence[Labelled] | None = None,
        pseudo_labels: PseudoLabels | None = None,
        scan: Method = "auto",
    ) -> None:
        if config.classes != len(task.classes):
            raise ConfigurationError(f"the task has {len(task.classes)} classes, the network {config.classes}")
        if config.overlapping != task.overlapping:
            raise ConfigurationError("classes overlap in the task or in the network, not in both")
        self.store, self.spec, self.task, self.settings, self.folder = store, spec, task, settings, folder
        self.rules = rules or Rules()
        labelled, self.validation_images = parted(images, settings, validation)
        unlabelled = [] if pseudo_labels is None else pseudo_labels.beside(labelled, self.validation_images)
        self.train_images = [*labelled, *unlabelled]
        require_features(store, spec, self.train_images, settings.views)
        require_features(store, spec, self.validation_images)
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.device = self.accelerator.device if device in ("cpu", "cuda") else torch.device(device)
        torch.manual_seed(settings.seed)
        self.network = Interpreter(spec, config, store.codebook(spec)).to(self.device)
        self.network.use_scan(scan)
        self._known_moments = KnownMoments(self.network.moments, lambda key: store.entry(spec, key).fov)
        if settings.crop is not None:
            require_window(settings.crop, self.network.head.step, spec.resolution)
        elif settings.foreground:
            raise ConfigurationError("foreground is a share of the windows: say with crop how large these are")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self._objective, self._stepper = self.accelerator.prepare(
            Objective(self.network, task, settings.precision), self.optimizer, device_placement=[False, False]
        )
        decided: dict[str, Any] = settings.model_dump(mode="json") | {"rules": self.rules.model_dump()}
        if pseudo_labels is not None:
            taught = [image.key.image_id for image in unlabelled]
            decided["pseudo_labels"] = {"teacher": pseudo_labels.teacher, "images": taught}
        self._card = Card(
            spec=spec,
            backbone=backbone,
            task=task,
            config=config,
            training_ids=tuple(image.key.image_id for image in self.train_images),
            validation_ids=tuple(image.key.image_id for image in self.validation_images),
            training=decided,
        )
        self.epoch, self.next_batch, self.best, self.since_best = 0, 0, -1.0, 0
        self._in_step = False
        self.data_wait_share = 0.0
        self._files = RunFolder(folder)
        self._holes = Holes() if self.device.type == "cpu" else None
        if self.accelerator.is_main_process:
            self._files.require_same_run(self._card.model_dump(mode="json") | self._decided_elsewhere())
        self._resume()
        self._truths = {image.key.image_id: self._truth(image) for image in labelled}
        if pseudo_labels is not None and self._unfinished():
            for image, native in pseudo_labels.label(unlabelled, self.device):
                self._truths[image.key.image_id] = self._truth(image, native)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        steps = self.settings.steps
        return self.settings.epochs if steps is None else -(-steps // self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.train_images) // self.settings.batch)

    def run(self, report: Report | None = None, stop: Stop | None = None) -> float:
        """Train to the last epoch or until validation stops improving; returns the validation Dice of what was kept.

        That is the best by ``Scores.criterion``. Without validation images the last epoch is kept, and its Dice is
        not known (nan).

        Args:
            report: called with epoch, batch and loss after each batch.
            stop: asked after each batch; the state is saved and KeyboardInterrupt raised. Several processes cannot
                agree on a batch, and go on from the last epoch's end.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        with Recorder(self.folder if self.accelerator.is_main_process else None) as recorder:
            while self._unfinished():
                try:
                    self._run_epoch(recorder, report, stop)
                except KeyboardInterrupt:
                    # In the middle of a step, gradients are half added up, and of several processes each has its own:
                    # then what was saved last stands.
                    if not self._in_step and self.accelerator.num_processes == 1:
                        self._save_state()
                    raise
                self.epoch, self.next_batch = self.epoch + 1, 0
                if self.epoch % self.settings.evaluate_every == 0 or self.epoch == self.epochs:
                    self._validate(recorder)
                self._save_state()
        if self.accelerator.is_main_process:
            self._calibrate()
            self._fit_domain()
        self.accelerator.wait_for_everyone()
        return self._kept_dice()

    def _run_epoch(self, recorder: Recorder, report: Report | None, stop: Stop | None) -> None:
        started, waited, asked = time.perf_counter(), 0.0, time.perf_counter()
        for batch in self._batches():
            waited += time.perf_counter() - asked
            loss = self._step(batch)
            if self._holes is not None:
                self._holes.after_step()
            recorder.loss(loss, self.epoch * self.steps_per_epoch + batch.position)
            if report is not None:
                report(self.epoch, batch.position, loss)
            if stop is not None and stop.asked and self.accelerator.num_processes == 1:
                raise KeyboardInterrupt
            asked = time.perf_counter()
        self.data_wait_share = waited / (time.perf_counter() - started)
        recorder.epoch(self.epoch, self.data_wait_share, self.optimizer.param_groups[0]["lr"])

    def _batches(self) -> Iterator[Batch]:
        drawn = np.random.default_rng([self.settings.seed, self.epoch, 1]).choice(
            self.settings.views, size=len(self.train_images)
        )
        keys = [Key(i.key.image_id, str(view)) for i, view in zip(self.train_images, drawn, strict=True)]
        one = not self.network.head.all_timesteps
        plans = plan_epoch(
            self.spec, keys, self.settings.batch, seed=self.settings.seed, epoch=self.epoch, one_timestep=one
        )
        return stream(self.store, self.spec, [self._share_of(plan) for plan in plans], start=self.next_batch)

    def _share_of(self, plan: Plan) -> Plan:
        """This process's images of a batch; one at least, so that all processes take the same steps."""
        rows = self._rows(len(plan.keys)) or [0]
        return Plan(tuple(plan.keys[row] for row in rows), plan.timesteps[rows])

    def _rows(self, images: int) -> list[int]:
        """Which of a batch's images are this process's."""
        return list(range(self.accelerator.process_index, images, self.accelerator.num_processes))

    def _weight(self, position: int) -> float:
        """Of this process's mean loss, so that all images of a batch weigh alike however many each process has."""
        images = min(self.settings.batch, len(self.train_images) - position * self.settings.batch)
        return len(self._rows(images)) * int(self.accelerator.num_processes) / images

    def _step(self, batch: Batch) -> float:
        """Learn from a batch; the weights change when ``accumulate`` batches have been seen."""
        self._in_step = True
        loss = self._learn(batch)
        self.next_batch, self._in_step = batch.position + 1, False
        return loss

    def _learn(self, batch: Batch) -> float:
        torch.manual_seed(_drawn_seed(self.settings.seed, self.epoch, batch.position, self.accelerator.process_index))
        maps, t, truth, inside = self._inputs(batch)
        self._set_learning_rate(batch.position)
        self.network.train()
        full = (batch.position + 1) % self.settings.accumulate == 0 or batch.position + 1 == self.steps_per_epoch
        with self.accelerator.no_sync(self._objective) if not full else nullcontext():
            loss = self._objective(maps, t, truth, inside) * self._weight(batch.position)
            self.accelerator.backward(loss / self.settings.accumulate)
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

    def _inputs(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps, timesteps, truth and what counts: cropped, flipped and augmented by the position's seed."""
        steps: slice | int = slice(None) if self.network.head.all_timesteps else 0
        batch = batch._replace(maps={name: m[:, steps] for name, m in batch.maps.items()})
        moments = self._known_moments.of(batch) if self.network.config.standardise else None
        batch, truths = self._windows(batch)
        maps = self.network.decoded(batch.maps, moments)
        truth = torch.from_numpy(np.stack([labels for labels, _ in truths])).to(self.device)
        inside = torch.from_numpy(np.stack([inside for _, inside in truths])).to(self.device)
        if self.settings.flips:
            random = np.random.default_rng([self.settings.seed, self.epoch, batch.position])
            axes = [a for a, flip in zip((-1, -2), random.random(2) < 0.5, strict=True) if flip]
            maps = {name: m.flip(axes) for name, m in maps.items()}
            truth, inside = truth.flip(axes), inside.flip(axes)
        t = torch.from_numpy(batch.timesteps[:, steps]).to(self.device)
        return self.network.head.augment(maps), t, truth, inside

    def truths(self, batch: Batch) -> list[Truth]:
        """Truth and what counts, each (R, R), of every image of a batch, flipped as its view is."""
        flipped = []
        for key in batch.keys:
            labels, inside = self._truths[key.image_id]
            axes = flipped_axes(key.view)
            flipped.append((np.flip(labels, axes), np.flip(inside, axes)))
        return flipped

    def _windows(self, batch: Batch) -> tuple[Batch, list[Truth]]:
        """A window of each image and of its truth, where the settings ask for windows."""
        truths, side = self.truths(batch), self.settings.crop
        if side is None:
            return batch, truths
        settings, step = self.settings, self.network.head.step
        random = np.random.default_rng([settings.seed, self.epoch, batch.position, self.accelerator.process_index, 3])
        corners = [draw_corner(self._centres(*truth, random), side, step, random) for truth in truths]
        maps = crop_maps(batch.maps, corners, side, self.spec.resolution)
        windows = [
            (crop_plane(labels, corner, side), crop_plane(inside, corner, side))
            for (labels, inside), corner in zip(truths, corners, strict=True)
        ]
        return batch._replace(maps=maps), windows

    def _centres(
        self, labels: NDArray[np.uint8], inside: NDArray[np.bool_], random: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Where the window of an image may be centred."""
        share = self.settings.foreground
        if share and random.random() < share:
            return draw_class(self.task.members(labels), inside, random)
        return inside

    def _set_learning_rate(self, batch_index: int) -> None:
        done = (self.epoch + batch_index / self.steps_per_epoch) / self.epochs
        factor = 0.5 * (1 + math.cos(math.pi * done)) if self.settings.decay == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def _validate(self, recorder: Recorder) -> None:
        """Score on the validation images, in the first process; keep the interpreter if it is the best."""
        criterion, metrics = [0.0], {}
        if self.accelerator.is_main_process and self.validation_images:
            scores = evaluate(
                self.network,
                self.store,
                self.spec,
                self.task,
                self.validation_images,
                recorder.pictures(self.epoch, self.task, self._truth),
                rules=self.rules,
            )
            recorder.scores(scores, self.epoch)
            criterion = [scores.criterion(overlapping=self.task.overlapping)]
            metrics = {"validation_dice": round(scores.mean_dice, 4)}
        criterion = broadcast_object_list(criterion)
        if criterion[0] <= self.best and self.validation_images:
            self.since_best += 1
            return
        self.best, self.since_best = criterion[0], 0
        if self.accelerator.is_main_process:
            card = self._card.model_copy(update={"metrics": metrics | {"epoch": self.epoch}})
            save_interpreter(self.folder, self.network, card)

    def _calibrate(self) -> None:
        """Fit the temperature of the interpreter that was kept, once."""
        interpreter, card = load_interpreter(self.folder)
        if not self.validation_images or "calibrated" in card.metrics:
            return
        temperature = fit_temperature(
            interpreter.to(self.device), self.store, self.task, self.validation_images, self.rules
        )
        metrics = card.metrics | {"calibrated": 1.0}
        write_card(self.folder, card.model_copy(update={"temperature": temperature, "metrics": metrics}))

    def _kept_dice(self) -> float:
        dice = [math.nan]
        if self.accelerator.is_main_process:
            dice = [read_card(self.folder).metrics.get("validation_dice", math.nan)]
        return float(broadcast_object_list(dice)[0])

    def _fit_domain(self) -> None:
        """Keep what tells how far a photograph is from these images, where they are enough to tell."""
        enough = len(self.train_images) + len(self.validation_images) >= LEAST
        if enough and not (self.folder / DOMAIN_FILE).is_file():
            domain_of(self._card, self.store).save(self.folder)

    def _unfinished(self) -> bool:
        patience = self.settings.patience
        return self.epoch < self.epochs and (patience is None or self.since_best < patience)

    def _truth(self, image: Labelled, native: NDArray[np.uint8] | None = None) -> Truth:
        """Truth (R, R), of an image's masks or of what is given instead, uint8 (H, W), and what counts (R, R)."""
        entry = self.store.entry(self.spec, image.key)
        if native is None:
            native = native_truth(self.store, image, self.task)
        truth = self.rules.network_truth(entry, native, self.task, image.sample)
        return truth, self.rules.counted(entry.fov)

    def _decided_elsewhere(self) -> dict[str, Any]:
        """What else decides a training: the masks, and how many processes share a batch."""
        images = [*self.train_images, *self.validation_images]
        masks = json.dumps([[image.sample.masks.get(target) for target in self.task.targets] for image in images])
        return {
            "masks": hashlib.sha256(masks.encode()).hexdigest(),
            "processes": self.accelerator.num_processes,
        }

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            self._files.save_state(
                {
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "gradients": [p.grad for p in self.network.parameters()],
                    "progress": [self.epoch, self.next_batch, self.best, self.since_best],
                }
            )

    def _resume(self) -> None:
        state = self._files.load_state(self.device)
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
                parameter.grad = gradient
            self.epoch, self.next_batch, self.best, self.since_best = state["progress"]


def _drawn_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
