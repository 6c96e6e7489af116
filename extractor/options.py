"""Options that several commands of ``extractor`` share, and the recipe that they describe together."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from extractor.presets import PRESETS, Preset, default_preprocessing
from store.console import AsJson as AsJson
from store.console import DeviceOption as DeviceOption
from store.spec import PREPROCESSINGS, Precision, Preprocessing, PreprocessingName, Trajectory

if TYPE_CHECKING:  # loading diffusers takes seconds
    from extractor.backbone import Backbone

FEATURES = "Features"
"""Help panel of the options that say what is extracted."""

_features = partial(typer.Option, rich_help_panel=FEATURES)

PresetOption = Annotated[str, _features(help=f"Recipe: {', '.join(PRESETS)}.")]
BackboneOption = Annotated[
    str | None,
    _features(help="Shipped name, folder or hub id; untrained:NAME has random weights.", show_default="the preset's"),
]
PreprocessingOption = Annotated[
    PreprocessingName | None,
    _features(
        help="How photographs are prepared.", show_default="as in the backbone's training; fundus if that is unknown"
    ),
]
TrajectoryOption = Annotated[Trajectory, _features(help="How features at several timesteps are reached.")]
SeedOption = Annotated[int, _features(min=0, help="Seed of the noise, for stochastic.")]
ClassLabelOption = Annotated[
    int | None,
    _features(min=0, help="Class that a class-conditional backbone is run with."),
]
TimestepsOption = Annotated[
    str | None,
    _features(help="Timesteps to keep, such as 1,10,100.", show_default="the preset's"),
]
GridOption = Annotated[
    str | None,
    _features(help="Timesteps to run the network at.", show_default="those kept"),
]
BlocksOption = Annotated[
    str | None,
    _features(help="Decoder blocks by index, such as 4,6,8.", show_default="the preset's"),
]
ResolutionOption = Annotated[
    int | None,
    _features(min=8, help="Side in pixels at which photographs are read.", show_default="the preset's"),
]
ClipOption = Annotated[bool, _features("--clip", help="Clip x0_hat to [-1, 1] at every step.")]
PrecisionOption = Annotated[Precision, _features(help="Precision of the network's arithmetic.")]


def integers(text: str | None) -> tuple[int, ...] | None:
    """1,10,100 -> (1, 10, 100)."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers separated by commas, got {text!r}") from error


def recipe_of(
    preset: str,
    clip: bool,
    trajectory: Trajectory,
    seed: int,
    reading: tuple[str | None, str | None, str | None],
    resolution: int | None,
) -> Preset:
    """The recipe that the options describe; ``reading`` is timesteps, grid and blocks as typed."""
    recipe = dataclasses.replace(_preset_named(preset), clip=clip).with_trajectory(trajectory, seed)
    timesteps, grid, blocks = (integers(part) for part in reading)
    return recipe.with_overrides(timesteps, grid, blocks, resolution)


def preprocessing_for(network: Backbone, name: PreprocessingName | None) -> Preprocessing:
    """The preprocessing called ``name``; if None, that of the network's training, as far as it is recorded."""
    return PREPROCESSINGS[name]() if name is not None else default_preprocessing(network)


def _preset_named(name: str) -> Preset:
    """The preset called ``name``; BadParameter lists the presets there are."""
    if name not in PRESETS:
        raise typer.BadParameter(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
