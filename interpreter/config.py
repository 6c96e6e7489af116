"""The free choices in building an interpreter; its widths and levels follow from the FeatureSpec."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreter.vss import Variant

HeadName = Literal["adaptive", "joint", "mlp", "unet", "pyramid"]


class LevelChoices(BaseModel):
    """How the levels of an interpreter are built; networks that are compared share these choices.

    Attributes:
        width_multiplier: width of a level, as a multiple of the total channels of its maps.
        max_width: largest width of a level.
        vss: variant of the VSS block.
        vss_max_size: levels larger than this have no VSS block (its cost grows with the area).
        standardise: bring each channel of a photograph's maps to mean 0 and variance 1 before they are read, which
            removes what a camera does to a channel as a whole (instance normalisation, Ulyanov et al. 2016).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width_multiplier: int = Field(default=1, ge=1)
    max_width: int = Field(default=64, ge=8)
    vss: Variant = "v0"
    vss_max_size: int = Field(default=128, ge=0)
    standardise: bool = False


class InterpreterConfig(LevelChoices):
    """The configuration of a network.

    Attributes:
        classes: n, background included.
        overlapping: whether classes may overlap; each but the background then has a sigmoid of its own, instead of
            one softmax over all classes.
        head: which network reads the features (``interpreter.heads``).
        drop_path: probability that a VSS block is skipped for an image in training.
        time_width: width of the timestep embedding.
    """

    classes: int = Field(default=2, ge=2)
    overlapping: bool = False
    head: HeadName = "adaptive"
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    time_width: int = Field(default=64, ge=8)

    @property
    def outputs(self) -> int:
        """Number of scores for each pixel: one for each class, without the background if classes overlap."""
        return self.classes - self.overlapping


def with_current_defaults(kind: type[BaseModel], chosen: dict[str, Any]) -> dict[str, Any]:
    """Choices that an earlier version wrote as JSON, completed by the defaults of the fields added since."""
    return kind().model_dump(mode="json") | chosen
