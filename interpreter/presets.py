"""What goes together in a training: how long, in which steps, and how the network's levels are built."""

from __future__ import annotations

from typing import Any, Literal

from interpreter.config import InterpreterConfig, LevelChoices
from interpreter.settings import TrainingBudget, TrainingSettings

TrainingPresetName = Literal["paper", "fast"]


class TrainingPlan(TrainingBudget, LevelChoices):
    """Budget and levels of a training."""

    def training_settings(self, **others: Any) -> TrainingSettings:
        """Settings of a training with this budget; ``others`` are further ones, or go before it."""
        return TrainingSettings(**self.model_dump(include=set(TrainingBudget.model_fields)) | others)

    def network_config(self, **others: Any) -> InterpreterConfig:
        """A network with such levels; ``others`` are its further choices, or go before them."""
        return InterpreterConfig(**self.model_dump(include=set(LevelChoices.model_fields)) | others)


TRAINING_PRESETS: dict[TrainingPresetName, TrainingPlan] = {
    "paper": TrainingPlan(),
    "fast": TrainingPlan(
        steps=600,
        crop=128,
        learning_rate=3e-3,
        decay="cosine",
        vss_max_size=64,
        standardise=True,
        width_multiplier=2,
    ),
}
"""``paper``: DiffDGSS (MICCAI 2024). ``fast``: on a CPU as much in a tenth of the time, and better on cameras that were
not seen (docs/experiments.md); for features of the extraction preset of that name."""
