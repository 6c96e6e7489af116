"""Options that several commands of ``extractor`` share, and what they mean together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from extractor.presets import PRESETS, Preset, usual_preprocessing
from store.spec import PREPROCESSINGS, Precision, Preprocessing, PreprocessingName, Trajectory

if TYPE_CHECKING:  # loading diffusers takes seconds
    from extractor.backbone import Backbone

FEATURES = "Features"
"""Panel of help for options that say what is extracted."""

PresetOption = Annotated[str, typer.Option(help=f"Recipe: {', '.join(PRESETS)}.", rich_help_panel=FEATURES)]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Shipped name, folder or hub id; the preset's if not given. untrained:NAME has random weights.",
        rich_help_panel=FEATURES,
    ),
]
PreprocessingOption = Annotated[
    PreprocessingName | None,
    typer.Option(
        help="How photographs are prepared.",
        show_default="what the backbone was trained on; fundus where it does not say",
        rich_help_panel=FEATURES,
    ),
]
TrajectoryOption = Annotated[Trajectory, typer.Option(help="How the noise grid is walked.", rich_help_panel=FEATURES)]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the noise; stochastic only.", rich_help_panel=FEATURES)]
ClassLabelOption = Annotated[
    int | None, typer.Option(min=0, help="For class-conditional backbones.", rich_help_panel=FEATURES)
]
TimestepsOption = Annotated[
    str | None, typer.Option(help="Timesteps to keep, such as 1,10,100; the preset's.", rich_help_panel=FEATURES)
]
GridOption = Annotated[
    str | None, typer.Option(help="Timesteps to run the network at; the kept ones.", rich_help_panel=FEATURES)
]
BlocksOption = Annotated[
    str | None, typer.Option(help="Decoder blocks by index, such as 4,6,8; the preset's.", rich_help_panel=FEATURES)
]
ResolutionOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Side in pixels at which photographs are read.",
        show_default="the preset's",
        rich_help_panel=FEATURES,
    ),
]
ClipOption = Annotated[
    bool, typer.Option("--clip", help="Clip x0_hat to [-1, 1] at every step.", rich_help_panel=FEATURES)
]
PrecisionOption = Annotated[Precision, typer.Option(help="Arithmetic of the network.", rich_help_panel=FEATURES)]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


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
    """The recipe that options describe; ``reading`` is timesteps, grid and blocks as they were typed."""
    recipe = dataclasses.replace(_preset_named(preset), clip=clip).along(trajectory, seed)
    timesteps, grid, blocks = (integers(part) for part in reading)
    return recipe.reading(timesteps, grid, blocks, resolution)


def preprocessing_for(network: Backbone, name: PreprocessingName | None) -> Preprocessing:
    """The preprocessing of that name; without one, what the network was trained on, as far as that is known."""
    return PREPROCESSINGS[name]() if name is not None else usual_preprocessing(network)


def _preset_named(name: str) -> Preset:
    """The preset of that name, or a usage error that lists them."""
    if name not in PRESETS:
        raise typer.BadParameter(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
