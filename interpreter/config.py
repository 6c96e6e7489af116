"""The free choices of an interpreter; widths and levels follow from the FeatureSpec."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreter.vss import Variant

HeadName = Literal["adaptive", "joint", "mlp", "unet", "pyramid"]


class LevelChoices(BaseModel):
    """How the levels of an interpreter are built: what networks that are compared have alike.

    Attributes:
        width_multiplier: a level is so many times as wide as its maps together,
        max_width: up to this.
        vss: variant of the VSS block.
        vss_max_size: levels larger than this have no VSS block (its cost grows with the area).
        standardise: bring each channel of a photograph's maps to mean 0 and variance 1 before they are read, so that
            what a camera does to a channel as a whole is not seen (instance normalisation, Ulyanov et al. 2016).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width_multiplier: int = Field(default=1, ge=1)
    max_width: int = Field(default=64, ge=8)
    vss: Variant = "v0"
    vss_max_size: int = Field(default=128, ge=0)
    standardise: bool = False


class InterpreterConfig(LevelChoices):
    """What may be chosen of a network.

    Attributes:
        classes: n, background included.
        overlapping: classes may overlap: one sigmoid for each but the background, instead of a softmax.
        head: which network reads the features (``interpreter.heads``).
        drop_path: in training.
        time_width: of the embedding of the timestep.
    """

    classes: int = Field(default=2, ge=2)
    overlapping: bool = False
    head: HeadName = "adaptive"
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    time_width: int = Field(default=64, ge=8)

    @property
    def outputs(self) -> int:
        """Scores for each pixel: one for each class; overlapping classes need none for the background."""
        return self.classes - self.overlapping


def with_current_defaults(kind: type[BaseModel], chosen: dict[str, Any]) -> dict[str, Any]:
    """Choices as JSON that an earlier version wrote, with the defaults of what may be chosen since."""
    return kind().model_dump(mode="json") | chosen
