"""How a diffusion network was trained: its noise schedule, and what it predicts.

x  noisy image x_t, float32 (b, 3, R, R)    a  alphas_cumprod[t]    T  steps of the schedule

Every output (noise, image or velocity) is converted to x0_hat here, so that no sampler depends on the prediction type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from extractor.errors import BackboneError
from extractor.schedule import NoiseSchedule, noise_schedule

Prediction = Literal["epsilon", "sample", "v_prediction"]

_BETA_SCHEDULES = {"squaredcos_cap_v2": "cosine", "linear": "linear"}

# x0_hat from x_t, the network's output and a_t.
_TO_X0: dict[Prediction, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "epsilon": lambda x, epsilon, a: (x - math.sqrt(1 - a) * epsilon) / math.sqrt(a),
    "sample": lambda _, x0, __: x0,
    "v_prediction": lambda x, v, a: math.sqrt(a) * x - math.sqrt(1 - a) * v,
}


@dataclass(frozen=True)
class Diffusion:
    """The noise schedule and the prediction type that a network was trained with.

    Attributes:
        schedule: the noise schedule.
        prediction: ``epsilon``, ``sample`` (x0) or ``v_prediction``, in diffusers' words.
        rescale_timesteps: the network is told t * 1000 / T instead of t.
        class_label: the class that a class-conditional network is run with.
    """

    schedule: NoiseSchedule
    prediction: Prediction = "epsilon"
    rescale_timesteps: bool = False
    class_label: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The configuration of diffusers' scheduler, with two keys of our own (rescale_timesteps, class_label)."""
        config, scale = self.identity(), 1000 / self.schedule.steps
        if config["beta_schedule"] == "linear":
            config |= {"beta_start": 1e-4 * scale, "beta_end": 0.02 * scale}
        return config | {"clip_sample": False}

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that fingerprints of backbones contain; they change if this does."""
        kind, steps = self.schedule.name.split("-")
        beta_schedule = next(theirs for theirs, ours in _BETA_SCHEDULES.items() if ours == kind)
        return {
            "_class_name": "DDIMScheduler",
            "beta_schedule": beta_schedule,
            "num_train_timesteps": int(steps),
            "prediction_type": self.prediction,
            "rescale_timesteps": self.rescale_timesteps,
            "class_label": self.class_label,
        }

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Diffusion:
        """Read the configuration of diffusers' scheduler; BackboneError for what is not supported."""
        steps, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
        if kind not in _BETA_SCHEDULES:
            known = ", ".join(_BETA_SCHEDULES)
            raise BackboneError(f"the noise schedule {kind!r} is not supported; expected one of {known}")
        for changes in ("trained_betas", "rescale_betas_zero_snr"):
            if config.get(changes):
                raise BackboneError(f"a noise schedule changed by {changes} is not supported")
        scale = 1000 / steps
        betas = config.get("beta_start", 1e-4 * scale), config.get("beta_end", 0.02 * scale)
        if kind == "linear" and not np.allclose(betas, (1e-4 * scale, 0.02 * scale)):
            raise BackboneError(f"a linear schedule from {betas[0]} to {betas[1]} over {steps} steps is not supported")
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in _TO_X0:
            raise BackboneError(f"expected prediction_type to be one of {', '.join(_TO_X0)}, got {prediction!r}")
        return cls(
            schedule=noise_schedule(f"{_BETA_SCHEDULES[kind]}-{steps}"),
            prediction=prediction,
            rescale_timesteps=bool(config.get("rescale_timesteps", False)),
            class_label=config.get("class_label"),
        )

    def to_x0(self, x: torch.Tensor, output: torch.Tensor, t: int) -> torch.Tensor:
        """Convert the network's output (b, 3, R, R) at x_t to x0_hat."""
        return _TO_X0[self.prediction](x, output, float(self.schedule.alphas_cumprod[t]))
