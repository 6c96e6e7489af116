"""Training presets: the length and steps of a training, and how the network's levels are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from interpreter.config import InterpreterConfig, LevelChoices
from interpreter.settings import TrainingBudget, TrainingSettings

TrainingPresetName = Literal["paper", "fast"]


class TrainingPlan(TrainingBudget, LevelChoices):
    """The budget of a training and the levels of its network, chosen together."""

    def training_settings(self, **others: Any) -> TrainingSettings:
        """Settings of a training with this budget; ``others`` are further settings, or override those of the budget."""
        return TrainingSettings(**self.values_beside(others, TrainingBudget) | others)

    def network_config(self, **others: Any) -> InterpreterConfig:
        """Configuration of a network with these levels; ``others`` are further choices, or override these."""
        return InterpreterConfig(**self.values_beside(others, LevelChoices) | others)

    def values_beside(self, given: Mapping[str, Any], kind: type[BaseModel] | None = None) -> dict[str, Any]:
        """The plan's values for everything that is not in ``given``; ``steps`` becomes None if ``epochs`` is given.

        Args:
            given: values by name, which take precedence over the plan's.
            kind: return only the fields of this model; all if None.
        """
        values = self.model_dump(include=None if kind is None else set(kind.model_fields))
        if "epochs" in given and "steps" in values:
            values["steps"] = None  # otherwise they would override the epochs
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
"""``paper``: DiffDGSS (MICCAI 2024), but for VSS blocks above 128 pixels (docs/decisions/0005). ``fast``: for CPUs and
for unseen cameras, with many steps on small windows, standardised channels and wider levels (docs/experiments.md);
reads features of the extraction preset ``fast``."""
