"""Selecting the state of a training that is kept, and fitting its temperature and domain after the last epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from interpreter.calibration import fit_temperature
from interpreter.checkpoint import Card, Validation, load_interpreter, read_card, save_interpreter, write_card
from interpreter.data import LabelledImage
from interpreter.domain import DOMAIN_FILE, MIN_IMAGES, domain_of
from interpreter.evaluation import evaluate
from interpreter.network import Interpreter
from interpreter.recorder import Recorder
from interpreter.rules import Rules
from store.feature_store import FeatureStore


class Selection:
    """Keeps the best interpreter of a run in its folder, or the latest if there are no validation images.

    Only the first process calls its methods, except for ``update``, which all processes call.

    Args:
        folder: folder of the run.
        card: card of the interpreter that is trained.
        store: holds features and masks of the images.
        images: the validation images: labelled and not trained on.
        rules: how the ground truth is made, and which pixels count.

    Attributes:
        best: criterion of the interpreter that is kept (``Scores.criterion``).
        since_best: number of validations since then, none of which was better.
    """

    def __init__(
        self, folder: Path, card: Card, store: FeatureStore, images: Sequence[LabelledImage], rules: Rules
    ) -> None:
        self._folder, self._card, self._store, self.images, self._rules = folder, card, store, images, rules
        self.best, self.since_best = -1.0, 0
        self._dice: float | None = None

    def criterion(self, network: Interpreter, epoch: int, recorder: Recorder) -> float:
        """Score the network on the validation images and return ``Scores.criterion``; 0 if there are none."""
        if not self.images:
            return 0.0
        task = self._card.task
        pictures = recorder.pictures(epoch, task)
        scores = evaluate(network, self._store, self._card.spec, task, self.images, pictures, rules=self._rules)
        recorder.scores(scores, epoch)
        self._dice = round(scores.mean_dice, 4)
        return scores.criterion(overlapping=task.overlapping)

    def update(self, criterion: float) -> bool:
        """Return whether a network with this criterion is to be kept; every process calls this, to count alike."""
        if criterion <= self.best and self.images:
            self.since_best += 1
            return False
        self.best, self.since_best = criterion, 0
        return True

    def keep(self, network: Interpreter, epoch: int) -> None:
        """Write the network whose criterion was computed last."""
        metrics = Validation(validation_dice=self._dice, epoch=epoch, finished=False)
        save_interpreter(self._folder, network, self._card.model_copy(update={"metrics": metrics}))

    def finish(self, device: str) -> None:
        """Fit temperature and domain of the interpreter that was kept, once each, if there are enough images."""
        interpreter, card = load_interpreter(self._folder)
        if self.images and not card.metrics.calibrated:
            temperature = fit_temperature(interpreter.to(device), self._store, card.task, self.images, self._rules)
            metrics = card.metrics.model_copy(update={"calibrated": True})
            card = card.model_copy(update={"temperature": temperature, "metrics": metrics})
            write_card(self._folder, card)
        enough = len(self._card.training_ids) + len(self._card.validation_ids) >= MIN_IMAGES
        if enough and not (self._folder / DOMAIN_FILE).is_file():
            domain_of(self._card, self._store).save(self._folder)
        if not card.metrics.finished:
            metrics = card.metrics.model_copy(update={"finished": True})
            write_card(self._folder, card.model_copy(update={"metrics": metrics}))

    def kept_dice(self) -> float:
        """Validation Dice of the interpreter that was kept; nan without validation images."""
        dice = read_card(self._folder).metrics.validation_dice
        return math.nan if dice is None else dice
