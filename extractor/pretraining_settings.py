"""Settings of a pre-training run."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from extractor.backbone import Backbone
from extractor.diffusion import Prediction
from extractor.errors import PretrainingError
from extractor.unet import stride
from store.spec import Preprocessing


class PretrainingSettings(BaseModel):
    """Settings of a pre-training run; written to settings.json next to its results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unet: dict[str, Any] = Field(description="configuration of diffusers' UNet2DModel")
    schedule: str = "cosine-4000"
    prediction: Prediction = "v_prediction"
    initial: str | None = Field(default=None, description="fingerprint of the backbone that it starts from")
    level_power: float = Field(default=3.0, ge=1, description="t = T u^p; 1 is uniform")
    resolution: int = Field(default=512, gt=0, description="side R of the prepared photographs")
    preprocessing: Preprocessing = Preprocessing()
    crop: int = Field(default=128, gt=0, description="side of the training crops; R for whole images")
    photometric: float = Field(default=1.0, ge=0, description="strength of brightness, contrast and colour changes")
    colourless: float = Field(default=0.0, ge=0, le=1, description="share of crops that are shown without colour")
    batch: int = Field(default=4, gt=0)
    accumulate: int = Field(default=1, gt=0, description="batches averaged in a step")
    steps: int = Field(default=100_000, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: int = Field(default=200, ge=0)
    ema_decay: float = Field(default=0.999, gt=0, lt=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: int = Field(default=500, gt=0)
    seed: int = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all random draws; a run from a backbone sees other crops and noise than that backbone has seen."""
        return (self.seed,) if self.initial is None else (self.seed, int(self.initial[:8], 16))

    def require_fitting_sizes(self) -> None:
        """Raise PretrainingError unless crops and prepared photographs are multiples of the network's stride."""
        multiple = stride(self.unet)
        for name, side in (("crop", self.crop), ("resolution", self.resolution)):
            if side % multiple:
                raise PretrainingError(f"{name} {side} is not a multiple of the network's stride {multiple}")

    @classmethod
    def going_on_from(cls, backbone: Backbone, **settings: Any) -> Self:
        """Settings of a run that starts from a backbone's weights and keeps its network, schedule and prediction.

        Args:
            settings: the other settings; ``preprocessing`` defaults to the backbone's own, if that is recorded.

        Raises:
            PretrainingError: the network is of a kind that can be run here, but not trained.
        """
        diffusion = backbone.diffusion
        unknown = {
            "a learned variance": backbone.config["out_channels"] != 3,
            "rescaled timesteps": diffusion.rescale_timesteps,
            "classes": diffusion.class_label is not None,
        }
        if any(unknown.values()):
            found = ", ".join(name for name, has in unknown.items() if has)
            raise PretrainingError(f"this backbone has {found}: it can be run here, not trained further")
        own = {"unet": backbone.config, "schedule": backbone.schedule.name, "prediction": diffusion.prediction}
        if backbone.preprocessing is not None:
            settings = {"preprocessing": backbone.preprocessing} | settings
        return cls.model_validate(settings | own | {"initial": backbone.fingerprint})
