"""What goes together in a training: how long, in which steps, and how the network's levels are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from interpreter.config import InterpreterConfig, LevelChoices
from interpreter.settings import TrainingBudget, TrainingSettings

TrainingPresetName = Literal["paper", "fast"]


class TrainingPlan(TrainingBudget, LevelChoices):
    """Budget and levels of a training."""

    def training_settings(self, **others: Any) -> TrainingSettings:
        """Settings of a training with this budget; ``others`` are further ones, or go before it."""
        return TrainingSettings(**self.values_beside(others, TrainingBudget) | others)

    def network_config(self, **others: Any) -> InterpreterConfig:
        """A network with such levels; ``others`` are its further choices, or go before them."""
        return InterpreterConfig(**self.values_beside(others, LevelChoices) | others)

    def values_beside(self, given: Mapping[str, Any], kind: type[BaseModel] | None = None) -> dict[str, Any]:
        """What the plan says where something else is given; of ``epochs`` that are given, its ``steps`` are none.

        Args:
            kind: the fields that are asked for; all if None.
        """
        values = self.model_dump(include=None if kind is None else set(kind.model_fields))
        if "epochs" in given and "steps" in values:
            values["steps"] = None  # which would go before them
        return {name: value for name, value in values.items() if name not in given}


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
"""``paper``: DiffDGSS (MICCAI 2024). ``fast``: for CPUs and for cameras that were not seen: many steps on small
windows, standardised channels, wider levels (docs/experiments.md); reads the extraction preset of that name."""
