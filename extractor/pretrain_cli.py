"""``extractor pretrain``: make a backbone from unlabelled photographs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from extractor.architectures import small_unet
from extractor.backbones import stored_backbone
from extractor.diffusion import Prediction
from extractor.options import AsJson
from store import console
from store.interrupts import Stop
from store.spec import PREPROCESSINGS, PreprocessingName

app = typer.Typer()

_network = partial(typer.Option, rich_help_panel="Network")
_crops = partial(typer.Option, rich_help_panel="Photographs")
_training = partial(typer.Option, rich_help_panel="Training")

Images = Annotated[list[Path], typer.Option(help="Folder of photographs. May be given again.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder of the run; an interrupted run resumes.", show_default=False)]

Config = Annotated[
    Path | None, _network(help="JSON configuration of a UNet2DModel.", show_default="that of the small backbone")
]
Initial = Annotated[
    str | None,
    _network(
        help="Backbone to start from, for instance to adapt it to your own cameras: shipped name, folder or hub id. "
        "It decides network, schedule, prediction and preprocessing."
    ),
]
Schedule = Annotated[str | None, _network(help="Noise schedule, such as linear-1000.", show_default="cosine-4000")]
PredictionType = Annotated[
    Prediction | None, _network(help="What the network learns to predict.", show_default="v_prediction")
]

Resolution = Annotated[int, _crops(min=8, help="Side in pixels of the prepared photographs.")]
Crop = Annotated[int, _crops(min=8, help="Side in pixels of the crops; that of the resolution for whole photographs.")]
Photometric = Annotated[float, _crops(min=0.0, help="Strength of gamma, gain, contrast and colour changes.")]
Colourless = Annotated[float, _crops(min=0.0, max=1.0, help="Share of crops that are shown without colour.")]
PreprocessingChoice = Annotated[
    PreprocessingName | None, _crops(help="How photographs are prepared.", show_default="fundus")
]

Steps = Annotated[int, _training(min=1, help="Steps of the optimiser.")]
Batch = Annotated[int, _training(min=1, help="Crops in a batch, on each device.")]
Accumulate = Annotated[int, _training(min=1, help="Batches whose gradients are averaged in a step.")]
LearningRate = Annotated[float, _training(min=1e-9, help="Peak learning rate.")]
Warmup = Annotated[int, _training(min=0, help="Steps over which the learning rate rises.")]
LevelPower = Annotated[
    float, _training(min=1.0, help="Exponent p of the drawn noise levels t = T u^p; 1 draws them uniformly.")
]
MixedPrecision = Annotated[Literal["no", "fp16", "bf16"], _training(help="Mixed precision of the arithmetic.")]
CheckpointEvery = Annotated[int, _training(min=1, help="Steps between checkpoints.")]
Seed = Annotated[int, _training(min=0, help="Seed of everything that is drawn.")]
Workers = Annotated[
    int, _training(min=0, help="Processes that make crops, for each device; a GPU outpaces the main process alone.")
]


@app.command(epilog="Example: extractor pretrain --images photos --images more --out runs/backbone --steps 20000")
def pretrain(
    images: Images,
    out: Out,
    config: Config = None,
    initial: Initial = None,
    schedule: Schedule = None,
    prediction: PredictionType = None,
    preprocessing: PreprocessingChoice = None,
    resolution: Resolution = 512,
    crop: Crop = 128,
    photometric: Photometric = 1.0,
    colourless: Colourless = 0.0,
    steps: Steps = 100_000,
    batch: Batch = 4,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = 5e-4,
    warmup: Warmup = 200,
    level_power: LevelPower = 3.0,
    mixed_precision: MixedPrecision = "no",
    checkpoint_every: CheckpointEvery = 500,
    seed: Seed = 0,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Pre-train a backbone on unlabelled photographs.

    Under `accelerate launch -m extractor.cli pretrain ...` several devices train it together.
    """
    from extractor.photographs import find_images, prepare_photographs
    from extractor.pretraining import Pretraining
    from extractor.pretraining_folder import PICTURES_FOLDER
    from extractor.pretraining_settings import PretrainingSettings

    described: dict[str, Any] = {"config": config, "schedule": schedule, "prediction": prediction}
    if preprocessing is not None:
        described["preprocessing"] = PREPROCESSINGS[preprocessing]()
    given = {name: value for name, value in described.items() if value is not None}
    if initial is not None and given:
        raise typer.BadParameter(
            "--initial decides the network and how photographs are prepared: leave out --config, --schedule, "
            "--prediction and --preprocessing"
        )
    chosen: dict[str, Any] = {
        "resolution": resolution, "crop": crop, "photometric": photometric, "colourless": colourless, "steps": steps,
        "batch": batch, "accumulate": accumulate, "learning_rate": learning_rate, "warmup": warmup,
        "level_power": level_power, "mixed_precision": mixed_precision, "checkpoint_every": checkpoint_every,
        "seed": seed,
    }  # fmt: skip
    start = None if initial is None else stored_backbone(initial)
    if start is not None:
        settings = PretrainingSettings.going_on_from(start, **chosen)
    else:
        given["unet"] = json.loads(given.pop("config").read_text()) if config else small_unet()
        settings = PretrainingSettings.model_validate(chosen | given)
    paths = find_images(images, without=out / PICTURES_FOLDER)
    with console.progress("preparing photographs", len(paths), as_json=as_json) as advance:
        photographs = prepare_photographs(
            paths, out / "prepared", resolution, settings.preprocessing, lambda _: advance()
        )
    for reason in photographs.rejected:
        console.say(f"left out: {reason}")
    training = Pretraining(settings, photographs, out, start, workers=workers)
    stop, single_process = Stop(), training.accelerator.num_processes == 1
    say = partial(console.say, "writing a checkpoint; Ctrl-C again interrupts at once")
    with (
        stop.on_interrupt(say, single_process=single_process),
        console.progress("pre-training", steps - training.step, as_json=as_json) as advance,
    ):
        training.run(lambda _, loss: advance(1, f"loss {loss:.3f}"), stop)
    if as_json:
        console.print_json(
            {"backbone": str(out / "backbone"), "steps": training.step, "left_out": photographs.rejected}
        )
    else:
        console.print_line(f"backbone: {out / 'backbone'}  (pictures and TensorBoard beside it)")
