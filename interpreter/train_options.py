"""The options of ``interpreter train``, in the panels that its help shows them in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from interpreter.config import HeadName
from interpreter.presets import TRAINING_PRESETS, TrainingPresetName
from interpreter.vss import Variant
from store.collection import UNNAMED_TARGET

_data = partial(typer.Option, rich_help_panel="Images and labels")
_features = partial(typer.Option, rich_help_panel="Features")
_training = partial(typer.Option, rich_help_panel="Training")
_network = partial(typer.Option, rich_help_panel="Network")


def _use_as_defaults(context: typer.Context, preset: TrainingPresetName) -> TrainingPresetName:
    """Let a preset's values replace the defaults of the options that it names."""
    context.default_map = TRAINING_PRESETS[preset].model_dump(exclude_defaults=True)
    return preset


Out = Annotated[Path, typer.Option(help="Folder of the run; an interrupted run resumes.", show_default=False)]

Validation = Annotated[
    list[str] | None,
    _data(
        help="Labelled images to select the best epoch on, NAME or NAME:SPLIT, in place of a part of --dataset; never "
        "test on them. May be given again."
    ),
]
Unlabelled = Annotated[
    list[str] | None,
    _data(help="Photographs without masks to train on as well, NAME or NAME:SPLIT. May be given again."),
]
Teacher = Annotated[
    str | None,
    _data(help="Interpreter whose predictions are the labels of --unlabelled: shipped name or folder."),
]
Target = Annotated[
    list[str] | None,
    _data(
        help="Mask that becomes a class; may be given again. Where masks overlap, later ones cover earlier ones.",
        show_default=UNNAMED_TARGET,
    ),
]
TaskName = Annotated[str | None, _data(help="Name of the task.", show_default="the targets' names")]
Overlapping = Annotated[bool, _data("--overlapping", help="Targets may overlap, as lesions do.")]
Labels = Annotated[
    int | None,
    _data(
        min=1,
        help="Number of labelled images to use, drawn by --seed; they include those for validation unless "
        "--validation names some.",
        show_default="all",
    ),
]

Spec = Annotated[str | None, _features(help="Digest of the features to read, where the store holds several specs.")]
Backbone = Annotated[
    str | None,
    _features(help="Backbone that made the features.", show_default="as the store recorded it"),
]
Views = Annotated[
    str,
    _features(
        help="Extracted renderings to draw from, such as identity,photometric:8. Validation reads identity or, where "
        "that is not among them, the first that is no flip."
    ),
]

Preset = Annotated[
    TrainingPresetName,
    _training(
        "--preset",
        help="Defaults of the options below: paper has those of the publication, but VSS blocks only up to 128 pixels; "
        "fast is for CPUs and for cameras without labels.",
        is_eager=True,
        callback=_use_as_defaults,
    ),
]
Epochs = Annotated[int, _training(min=1, help="Passes over the training images.")]
Steps = Annotated[
    int | None,
    _training(min=1, help="Train until the end of the epoch in which this many batches are reached, not by --epochs."),
]
Batch = Annotated[int, _training(min=1, help="Images in a batch, over all processes.")]
Accumulate = Annotated[int, _training(min=1, help="Batches whose gradients are averaged in a step.")]
Crop = Annotated[
    int | None,
    _training(min=1, help="Side in pixels of the random windows to train on.", show_default="whole images"),
]
Foreground = Annotated[
    float, _training(min=0, max=1, help="Share of the windows that are centred on a pixel of a class.")
]
LearningRate = Annotated[float, _training(min=1e-9, help="Learning rate of Adam.")]
Decay = Annotated[Literal["none", "cosine"], _training(help="Decay of the learning rate.")]
EvaluateEvery = Annotated[int, _training(min=1, help="Epochs between validations.")]
Patience = Annotated[
    int | None,
    _training(min=1, help="Stop after this many validations without improvement.", show_default="never"),
]
Flips = Annotated[bool, _training(help="Flip the cached maps at random.")]
Precision = Annotated[Literal["float32", "bfloat16"], _training(help="Precision of the arithmetic.")]
Licence = Annotated[str, _training(help="Licence of the weights, which `interpreter models` and the service state.")]
Seed = Annotated[int, _training(min=0, help="Seed of everything that is drawn.")]

Head = Annotated[
    HeadName,
    _network(
        help="Network that reads the features: adaptive is the paper's, joint reads all timesteps at once, mlp is "
        "DDPM-Seg's."
    ),
]
Standardise = Annotated[
    bool, _network(help="Bring each channel of a photograph to mean 0 and variance 1: for cameras without labels.")
]
WidthMultiplier = Annotated[
    int, _network(min=1, help="Width of a level over the channels of its maps; 2 costs twice as much.")
]
MaxWidth = Annotated[int, _network(min=8, help="Largest width of a level.")]
Vss = Annotated[Variant, _network(help="Variant of the VSS block.")]
VssMaxSize = Annotated[int, _network(min=0, help="Side in pixels of the largest level that has a VSS block.")]
DropPath = Annotated[float, _network(min=0, max=0.99, help="Probability of skipping a VSS block while training.")]
