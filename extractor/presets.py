"""Named recipes: which features are read from a backbone, and how photographs are prepared.

A preset holds everything in a FeatureSpec that does not depend on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from extractor.errors import BackboneError
from store.codebook import Codebook, load_codebook
from store.errors import SpecError
from store.spec import (
    AffineEncoding,
    Encoding,
    EncodingName,
    FeatureSpec,
    FloatEncoding,
    Precision,
    Preprocessing,
    Trajectory,
    TransformEncoding,
)
from store.validation import first_problem

if TYPE_CHECKING:  # loading diffusers takes seconds; recipes are read without it
    from extractor.backbone import Backbone

MODELS = Path(__file__).parent / "models"
SOURCE_ONLY = "base"
"""A backbone that is shipped with the source only, as it is too large for the wheel."""
CODEBOOK_FILE = "codebook.safetensors"
UNTRAINED = "untrained:"
"""Prefix of a backbone's name that stands for its architecture with random weights."""


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


def encoding_of(name: EncodingName, backbone: str, codebook: Path | None = None) -> tuple[Encoding, Codebook | None]:
    """Look up an encoding by name, with the codebook if it is the compact one.

    Args:
        backbone: the backbone whose codebook (``codebook.safetensors`` next to its weights) is used if none is given.
        codebook: a file that ``extractor fit-codebook`` made.

    Raises:
        MissingEntry: the encoding is compact and there is no codebook.
    """
    if name == "compact":
        code = _codebook(backbone, codebook)
        return code.encoding, code
    return (AffineEncoding() if name == "int8" else FloatEncoding(kind=name)), None


def codebook_for(spec: FeatureSpec, backbone: str, codebook: Path | None = None) -> Codebook | None:
    """The codebook that a spec's encoding needs, found as in ``encoding_of``; None if it needs none."""
    return _codebook(backbone, codebook) if isinstance(spec.encoding, TransformEncoding) else None


def _codebook(backbone: str, codebook: Path | None) -> Codebook:
    return load_codebook(codebook or Path(backbone_source(backbone)) / CODEBOOK_FILE)


PRESETS = {"small": small, "fast": fast, "paper": paper}


def is_shipped(backbone: str) -> bool:
    """Return whether a name is that of a shipped backbone, which takes precedence over a folder of that name."""
    return backbone in shipped_backbones()


def shipped_backbones() -> list[str]:
    """Names of the backbones in this package, sorted."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def backbone_source(name: str) -> str:
    """The folder of a shipped backbone; any other name, which is a folder or a hub id, is returned unchanged.

    Raises:
        BackboneError: the backbone is shipped with the source only, and not present here.
    """
    if is_shipped(name):
        return str(MODELS / name)
    if name == SOURCE_ONLY and not Path(name).is_dir():
        raise BackboneError(
            f"the backbone {name} is too large for the wheel: name its folder, extractor/models/{name} in a checkout "
            "of the source"
        )
    return name


def stored_backbone(name: str, precision: Precision = "float32", class_label: int | None = None) -> Backbone:
    """Load a shipped backbone by name, or one from a folder or hub id, on the CPU and without the fast kernels.

    Raises:
        BackboneError: neither shipped nor found.
    """
    from extractor.backbone_folder import load_backbone

    try:
        return load_backbone(backbone_source(name), precision, class_label)
    except BackboneError as error:
        known = ", ".join(shipped_backbones()) or "none"
        raise BackboneError(f"{error} (shipped backbones: {known})") from error


def open_backbone(
    name: str,
    precision: Precision = "float32",
    device: str = "cpu",
    class_label: int | None = None,
) -> Backbone:
    """Load a shipped backbone by name, or one from a folder or hub id, onto a device, with the fast kernels for it.

    Args:
        name: the prefix ``untrained:`` asks for the architecture with random weights (``Backbone.untrained_copy``).

    Raises:
        BackboneError: the backbone is neither shipped nor found, or the device cannot be used.
    """
    loaded = stored_backbone(name.removeprefix(UNTRAINED), precision, class_label)
    if name.startswith(UNTRAINED):
        loaded = loaded.untrained_copy()
    try:
        loaded.to(device).use_fast_kernels()
    except (RuntimeError, AssertionError) as error:  # torch raises either if there is no such device
        raise BackboneError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return loaded
