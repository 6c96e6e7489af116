"""Named recipes: which features are read from a backbone, and how photographs are prepared.

A preset holds everything in a FeatureSpec that does not depend on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from extractor.errors import BackboneError
from store.errors import SpecError
from store.spec import (
    AffineEncoding,
    Encoding,
    FeatureSpec,
    FloatEncoding,
    Preprocessing,
    Trajectory,
)
from store.validation import first_problem

if TYPE_CHECKING:  # loading diffusers takes seconds; recipes are read without it
    from extractor.backbone import Backbone


@dataclass(frozen=True)
class Preset:
    """A recipe.

    Attributes:
        backbone: name of a shipped backbone, a folder or a hub id.
        grid: timesteps the network is run at.
        timesteps: timesteps whose features are kept.
        blocks: guided-diffusion's indices of the decoder blocks that are read.
        resolution: side R of the network's square.
        preprocessing: how photographs are prepared; None for the preprocessing of the backbone's training, if known.
        encoding: how features are stored by default.
    """

    name: str
    backbone: str
    grid: tuple[int, ...]
    timesteps: tuple[int, ...]
    blocks: tuple[int, ...]
    resolution: int
    trajectory: Trajectory = "ddim"
    clip: bool = False
    seed: int | None = None
    preprocessing: Preprocessing | None = None
    encoding: Encoding = field(default_factory=FloatEncoding)

    def spec(self, backbone: Backbone) -> FeatureSpec:
        """The FeatureSpec of this recipe with a backbone; SpecError if it is inconsistent."""
        try:
            return self._spec(backbone)
        except ValidationError as error:
            raise SpecError(f"the recipe {self.name!r}: {first_problem(error)}") from error
        except BackboneError as error:
            raise SpecError(f"the recipe {self.name!r}: {error}") from error

    def _spec(self, backbone: Backbone) -> FeatureSpec:
        return FeatureSpec(
            backbone=backbone.fingerprint,
            schedule=backbone.schedule.name,
            trajectory=self.trajectory,
            grid=self.grid,
            timesteps=self.timesteps,
            blocks=backbone.blocks(self.blocks, self.resolution),
            resolution=self.resolution,
            clip=self.clip,
            precision=backbone.precision,
            preprocessing=self.preprocessing or default_preprocessing(backbone),
            encoding=self.encoding,
            seed=self.seed,
        )

    def with_overrides(
        self,
        timesteps: tuple[int, ...] | None = None,
        grid: tuple[int, ...] | None = None,
        blocks: tuple[int, ...] | None = None,
        resolution: int | None = None,
    ) -> Preset:
        """The same recipe at other timesteps, blocks or resolution; None keeps the recipe's own.

        If timesteps are given without a grid, the network is run at these timesteps only.
        """
        return replace(
            self,
            timesteps=timesteps or self.timesteps,
            grid=grid or timesteps or self.grid,
            blocks=blocks or self.blocks,
            resolution=resolution or self.resolution,
        )

    def with_trajectory(self, trajectory: Trajectory, seed: int = 0) -> Preset:
        """The same recipe along another trajectory (the paper's ablations)."""
        grid = self.grid if trajectory == "ddim" else self.timesteps
        return replace(self, trajectory=trajectory, grid=grid, seed=seed if trajectory == "stochastic" else None)


def default_preprocessing(backbone: Backbone) -> Preprocessing:
    """The preprocessing that a backbone was trained with; the default one if that is not recorded."""
    return backbone.preprocessing or Preprocessing()


def small() -> Preset:
    """The shipped backbone: one block of each level from 64 to 512 pixels, the paper's timesteps, int8."""
    timesteps = (1, 10, 100, 500)
    return Preset(
        "small", "small", timesteps, timesteps, blocks=(2, 4, 6, 8), resolution=512, encoding=AffineEncoding()
    )


def fast() -> Preset:
    """``small`` at t = 100 and 500 alone, the most informative timesteps: half the forwards and half the bytes.

    The shipped interpreters read these features, `vessels` those of photographs without colour (``--preprocessing
    red-free``).
    """
    timesteps = (100, 500)
    return replace(small(), name="fast", grid=timesteps, timesteps=timesteps)


def paper() -> Preset:
    """DiffDGSS (MICCAI 2024): ADM at 512, T = 4000, decoder blocks 11 to 20.

    Its backbone is not shipped: import a guided-diffusion checkpoint into a folder, and name that folder.
    """
    timesteps = (1, 10, 100, 500)
    return Preset("paper", "backbone_512", timesteps, timesteps, blocks=tuple(range(11, 21)), resolution=512)


PRESETS = {"small": small, "fast": fast, "paper": paper}
