"""``interpreter train``: from cached features and a few masks to a network that segments."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interpreter.checkpoint import folder_of
from interpreter.config import HeadName, InterpreterConfig
from interpreter.data import all_images, labelled_in, notes_on_missing
from interpreter.domain import DOMAIN_FILE, MIN_IMAGES
from interpreter.metrics import finite_or_none
from interpreter.options import (
    AsJson,
    Datasets,
    DeviceOption,
    ScanOption,
    StoreOption,
    require_device,
    views_named,
)
from interpreter.presets import TRAINING_PRESETS, TrainingPlan, TrainingPresetName
from interpreter.pseudo_labels import PseudoLabels
from interpreter.settings import TrainingSettings
from interpreter.splits import validation_in
from interpreter.stored import store_spec
from interpreter.task import Task
from interpreter.vss import Variant
from store import console
from store.collection import UNNAMED_TARGET
from store.feature_store import FeatureStore
from store.interrupts import Stop

if TYPE_CHECKING:
    from interpreter.training import Training

app = typer.Typer()


def _default_to(context: typer.Context, preset: TrainingPresetName) -> TrainingPresetName:
    """Let a preset's values take the place of the options' own defaults."""
    context.default_map = TRAINING_PRESETS[preset].model_dump(exclude_defaults=True)
    return preset


def _as_options(plan: TrainingPlan) -> str:
    """What a plan's values that are not the defaults are on the command line."""
    named = {f"--{name.replace('_', '-')}": value for name, value in plan.model_dump(exclude_defaults=True).items()}
    return " ".join(name if value is True else f"{name} {value}" for name, value in named.items())


def _steps_of(context: typer.Context, steps: int | None) -> int | None:
    """Those that are asked for; those of a preset are not, where epochs are."""
    return None if console.options_given(context, ("epochs", "steps")) == ["--epochs"] else steps


@app.command(
    epilog="Example: interpreter train --store features.zarr --dataset stare:train --dataset hrf:train "
    f"--target vessel --preset fast --out runs/vessels · --preset fast is {_as_options(TRAINING_PRESETS['fast'])}"
)
def train(
    context: typer.Context,
    store: StoreOption,
    dataset: Datasets,
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on.", show_default=False)],
    validation: Annotated[
        list[str] | None,
        typer.Option(
            help="Select on these labelled images, NAME or NAME:SPLIT, instead of some of --dataset, and never test on "
            "them; may be given again.",
            rich_help_panel="Images and labels",
        ),
    ] = None,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(
            help="Train on these photographs besides, NAME or NAME:SPLIT, by what --teacher makes of them; "
            "may be given again.",
            rich_help_panel="Images and labels",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Shipped name or folder of the interpreter that labels --unlabelled.",
            rich_help_panel="Images and labels",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask that becomes a class; later ones cover earlier ones.",
            show_default=UNNAMED_TARGET,
            rich_help_panel="Images and labels",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Name of the task; the targets' names if not given.", rich_help_panel="Images and labels"),
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="Spec to read, if the store holds several.", rich_help_panel="Features")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone the features come from; the store knows it, unless it was moved.", rich_help_panel="Features"
        ),
    ] = None,
    device: DeviceOption = "cpu",
    _preset: Annotated[
        TrainingPresetName,
        typer.Option(
            "--preset",
            help="What is taken for options that are not given: the paper's values, or fast, for CPUs and for cameras "
            "yet unseen (see below).",
            is_eager=True,
            callback=_default_to,
            rich_help_panel="Training",
        ),
    ] = "paper",
    epochs: Annotated[int, typer.Option(min=1, help="Each shows every image once.", rich_help_panel="Training")] = 100,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End with the epoch in which so many batches are reached, not by --epochs.",
            rich_help_panel="Training",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Images in a batch, over all processes.", rich_help_panel="Training")
    ] = 4,
    crop: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on random windows of so many pixels; whole images if not given.",
            rich_help_panel="Training",
        ),
    ] = None,
    foreground: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the windows centred on a class that the image has.", rich_help_panel="Training"
        ),
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option(min=1e-9, help="Of Adam.", rich_help_panel="Training")] = 2e-4,
    decay: Annotated[
        Literal["none", "cosine"], typer.Option(help="Of the learning rate.", rich_help_panel="Training")
    ] = "none",
    evaluate_every: Annotated[
        int, typer.Option(min=1, help="Epochs between validations.", rich_help_panel="Training")
    ] = 5,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Validations without gain before stopping.", rich_help_panel="Training")
    ] = None,
    flips: Annotated[bool, typer.Option(help="Flip cached maps at random.", rich_help_panel="Training")] = True,
    views: Annotated[
        str,
        typer.Option(
            help="Extracted renderings to draw from, such as identity,photometric:8. Validation reads identity, or, "
            "where that is not among them, the first that is no flip.",
            rich_help_panel="Features",
        ),
    ] = "identity",
    vss: Annotated[Variant, typer.Option(help="Variant of the VSS block.", rich_help_panel="Network")] = "v0",
    vss_max_size: Annotated[
        int, typer.Option(min=0, help="No VSS block on levels larger than this.", rich_help_panel="Network")
    ] = 128,
    width_multiplier: Annotated[
        int,
        typer.Option(
            min=1,
            help="A level is so many times as wide as its maps together; 2 costs twice as much.",
            rich_help_panel="Network",
        ),
    ] = 1,
    max_width: Annotated[int, typer.Option(min=8, help="Width of a level at most.", rich_help_panel="Network")] = 64,
    standardise: Annotated[
        bool,
        typer.Option(
            help="Bring each channel of a photograph to mean 0 and variance 1: for cameras yet unseen.",
            rich_help_panel="Network",
        ),
    ] = False,
    head: Annotated[
        HeadName,
        typer.Option(
            help="Network that reads the features; joint reads all timesteps at once, mlp is DDPM-Seg's.",
            rich_help_panel="Network",
        ),
    ] = "adaptive",
    drop_path: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of VSS blocks skipped in training.", rich_help_panel="Network")
    ] = 0.0,
    overlapping: Annotated[
        bool, typer.Option("--overlapping", help="Targets may overlap (lesions).", rich_help_panel="Images and labels")
    ] = False,
    labels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on so many images, drawn by seed, validation included unless named.",
            rich_help_panel="Images and labels",
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the arithmetic.", rich_help_panel="Training")
    ] = "float32",
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches added up before a step.", rich_help_panel="Training")
    ] = 1,
    scan: ScanOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.", rich_help_panel="Training")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train on labelled images of a store; validation images are split off from them by seed, or named.

    Photographs without labels, of a new camera for one, are learnt from by what another interpreter makes of them.

    Under `accelerate launch -m interpreter.cli train ...` several devices share each batch.
    """
    from interpreter.training import Training  # imported late: takes a second

    if (unlabelled is None) != (teacher is None):
        raise typer.BadParameter("expected --unlabelled and --teacher together")
    features = FeatureStore(store, read_only=True)
    targets = tuple(target or [UNNAMED_TARGET])
    what = Task(name=task or "_".join(targets), targets=targets, overlapping=overlapping)
    settings = TrainingSettings.model_validate(
        {
            "epochs": epochs,
            "steps": _steps_of(context, steps),
            "crop": crop,
            "foreground": foreground,
            "batch": batch,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "decay": decay,
            "precision": precision,
            "evaluate_every": evaluate_every,
            "patience": patience,
            "flips": flips,
            "views": views_named(views),
            "labels": labels,
            "seed": seed,
        }
    )
    config = InterpreterConfig(
        classes=len(what.classes),
        overlapping=overlapping,
        head=head,
        vss=vss,
        vss_max_size=vss_max_size,
        drop_path=drop_path,
        width_multiplier=width_multiplier,
        max_width=max_width,
        standardise=standardise,
    )
    images = labelled_in(features, dataset, what)
    for line in notes_on_missing(features, [*dataset, *(validation or [])], what):
        console.note(line)
    read = store_spec(features, spec, images)
    source = backbone or features.backbone_of(read)
    if source is None:
        raise typer.BadParameter(
            f"the store does not know which backbone made {read.digest[:12]}; say so by --backbone"
        )
    kept = None if validation is None else validation_in(features, validation, what, settings.views)
    require_device(device)
    pseudo_labels = None
    if teacher is not None:
        if folder_of(teacher).resolve() == out.resolve():
            raise typer.BadParameter("expected another folder in --out than that of --teacher, which it would replace")
        unknown = [image for reference in unlabelled or [] for image in all_images(features, reference)]
        pseudo_labels = PseudoLabels(features, what, unknown, teacher, settings.views, scan)
        _print_teacher(teacher, pseudo_labels, what)
    training = Training(
        features, read, what, images, config, settings, out, source, device,
        validation=kept, pseudo_labels=pseudo_labels, scan=scan,
    )  # fmt: skip
    _train(training, as_json)


def _print_teacher(teacher: str, pseudo_labels: PseudoLabels, task: Task) -> None:
    theirs = pseudo_labels.task_of_teacher
    renamed = f"; its {theirs.targets[0]} is taken for {task.targets[0]}" if theirs.targets != task.targets else ""
    console.err.print(
        f"{teacher} labels those of {len(pseudo_labels.images)} photographs that have no labels here{renamed}"
    )


def _train(training: Training, as_json: bool) -> None:
    """Train to the end or to Ctrl-C, and say how good it became; of several processes the first one does."""
    from interpreter.counting import cost_of

    console.err.print(
        f"{len(training.train_images)} training and {len(training.validation_images)} validation images, "
        f"{cost_of(training.network)}"
    )
    if training.is_finished:
        console.note(f"{training.folder} is trained to its end already")
    training.prepare()  # before Ctrl-C waits for a step
    left = (training.epochs - training.epoch) * training.steps_per_epoch - training.next_batch
    first = training.accelerator.is_main_process
    stop, alone = Stop(), training.accelerator.num_processes == 1
    say = partial(console.err.print, "finishing a step; Ctrl-C again interrupts at once")
    with (
        stop.on_interrupt(say, alone=alone),
        console.progress("training", left, hidden=not first or training.is_finished, as_json=as_json) as advance,
    ):
        dice = training.run(lambda epoch, _, loss: advance(1, f"epoch {epoch + 1}, loss {loss:.3f}"), stop)
    if not first:
        return
    if not (training.folder / DOMAIN_FILE).is_file():
        console.note(f"it cannot tell photographs that are unlike its own: that takes {MIN_IMAGES} of them and more")
    if as_json:
        report = {
            "interpreter": str(training.folder),
            "validation_dice": finite_or_none(dice),
            "epochs": training.epoch,
        }
        console.print_json(report)
    elif math.isnan(dice):
        console.out.print(f"{training.folder}: trained to the last epoch, without validation images")
    else:
        console.out.print(
            f"{training.folder}: validation Dice {100 * dice:.2f}; try it: service --model {training.folder}"
        )
