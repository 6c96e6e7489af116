"""``interpreter train``: from cached features and a few masks to a network that segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from interpreter import train_options as option
from interpreter.checkpoint import UNLICENSED, folder_of, how_to_try
from interpreter.config import HeadName, InterpreterConfig
from interpreter.data import all_images, labelled_in, notes_on_missing
from interpreter.domain import DOMAIN_FILE, MIN_IMAGES
from interpreter.errors import ConfigurationError
from interpreter.metrics import finite_or_none
from interpreter.options import AsJson, Datasets, DeviceOption, ScanOption, StoreOption, require_device, views_named
from interpreter.presets import TRAINING_PRESETS, TrainingPlan
from interpreter.pseudo_labels import PseudoLabels
from interpreter.scan import Method
from interpreter.settings import TrainingSettings
from interpreter.splits import validation_in
from interpreter.stored import store_spec
from interpreter.task import Task
from store import console
from store.collection import UNNAMED_TARGET
from store.feature_store import FeatureStore
from store.interrupts import Stop
from store.spec import FeatureSpec

if TYPE_CHECKING:
    from interpreter.training import Training

app = typer.Typer()


def _as_options(plan: TrainingPlan) -> str:
    """The command-line options that say what a plan does, defaults left out."""
    named = {f"--{name.replace('_', '-')}": value for name, value in plan.model_dump(exclude_defaults=True).items()}
    return " ".join(name if value is True else f"{name} {value}" for name, value in named.items())


_OF_LEVELS = ("width_multiplier", "max_width", "vss", "vss_max_size", "drop_path")
_WITHOUT_EFFECT: dict[HeadName, tuple[str, ...]] = {
    "mlp": _OF_LEVELS,
    "unet": _OF_LEVELS,
    "pyramid": ("width_multiplier",),
}
"""Options that change nothing in a head: those of levels, where it has none, or whose widths are all the same."""


@app.command(
    epilog="Example: interpreter train --store features.zarr --dataset stare:train --dataset hrf:train "
    f"--target vessel --preset fast --out runs/vessels · --preset fast is {_as_options(TRAINING_PRESETS['fast'])}"
)
def train(
    context: typer.Context,
    store: StoreOption,
    dataset: Datasets,
    out: option.Out,
    validation: option.Validation = None,
    unlabelled: option.Unlabelled = None,
    teacher: option.Teacher = None,
    target: option.Target = None,
    task: option.TaskName = None,
    overlapping: option.Overlapping = False,
    labels: option.Labels = None,
    spec: option.Spec = None,
    backbone: option.Backbone = None,
    views: option.Views = "identity",
    _preset: option.Preset = "paper",
    epochs: option.Epochs = 100,
    steps: option.Steps = None,
    batch: option.Batch = 4,
    accumulate: option.Accumulate = 1,
    crop: option.Crop = None,
    foreground: option.Foreground = 0.0,
    learning_rate: option.LearningRate = 2e-4,
    decay: option.Decay = "none",
    evaluate_every: option.EvaluateEvery = 5,
    patience: option.Patience = None,
    flips: option.Flips = True,
    precision: option.Precision = "float32",
    seed: option.Seed = 0,
    licence: option.Licence = UNLICENSED,
    head: option.Head = "adaptive",
    standardise: option.Standardise = False,
    width_multiplier: option.WidthMultiplier = 1,
    max_width: option.MaxWidth = 64,
    vss: option.Vss = "v0",
    vss_max_size: option.VssMaxSize = 128,
    drop_path: option.DropPath = 0.0,
    device: DeviceOption = "cpu",
    scan: ScanOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Train on labelled images of a store; validation images are split off from them by seed, or named.

    With --unlabelled it learns from photographs without masks too, such as those of a new camera: another interpreter
    (--teacher) labels them.

    Under `accelerate launch -m interpreter.cli train ...` several devices share each batch.
    """
    from interpreter.training import Training  # imported late: takes a second

    if (unlabelled is None) != (teacher is None):
        raise typer.BadParameter("expected --unlabelled and --teacher together")
    if given := console.options_given(context, _WITHOUT_EFFECT.get(head, ())):
        raise typer.BadParameter(f"without effect on the head {head}: leave out {', '.join(given)}")
    if console.options_given(context, ("epochs", "steps")) == ["--epochs"]:
        steps = None  # the preset's, which would take precedence over the epochs asked for
    settings = TrainingSettings(
        batch=batch, epochs=epochs, steps=steps, crop=crop, foreground=foreground, learning_rate=learning_rate,
        decay=decay, evaluate_every=evaluate_every, patience=patience, accumulate=accumulate, precision=precision,
        flips=flips, views=views_named(views), labels=labels, seed=seed,
    )  # fmt: skip
    targets = tuple(target or [UNNAMED_TARGET])
    what = Task(name=task or "_".join(targets), targets=targets, overlapping=overlapping)
    config = InterpreterConfig(
        classes=len(what.classes), overlapping=overlapping, head=head, drop_path=drop_path, vss=vss,
        vss_max_size=vss_max_size, width_multiplier=width_multiplier, max_width=max_width, standardise=standardise,
    )  # fmt: skip
    features = FeatureStore(store, read_only=True)
    images = labelled_in(features, dataset, what)
    for line in notes_on_missing(features, [*dataset, *(validation or [])], what):
        console.note(line)
    read = store_spec(features, spec, images)
    kept = None if validation is None else validation_in(features, validation, what, settings.views)
    require_device(device)
    pseudo_labels = None
    if teacher is not None:
        pseudo_labels = _pseudo_labels(features, what, unlabelled or [], teacher, settings.views, scan, out)
    training = Training(
        features, read, what, images, config, settings, out, backbone or _recorded_backbone(features, read), device,
        validation=kept, pseudo_labels=pseudo_labels, scan=scan, licence=licence,
    )  # fmt: skip
    _train(training, as_json)


def _recorded_backbone(features: FeatureStore, spec: FeatureSpec) -> str:
    """The backbone that the store recorded for a spec; ConfigurationError asks for it if there is none."""
    recorded = features.backbone_of(spec)
    if recorded is None:
        raise ConfigurationError(f"the store does not know which backbone made {spec.digest[:12]}: give --backbone")
    return recorded


def _pseudo_labels(
    features: FeatureStore,
    task: Task,
    unlabelled: Sequence[str],
    teacher: str,
    views: Sequence[str],
    scan: Method,
    out: Path,
) -> PseudoLabels:
    """The teacher's labels of all images of the data sets ``unlabelled``; says on stderr how many there are."""
    if folder_of(teacher).resolve() == out.resolve():
        raise ConfigurationError("--out names the folder of --teacher, which it would replace: choose another")
    images = [image for reference in unlabelled for image in all_images(features, reference)]
    pseudo_labels = PseudoLabels(features, task, images, teacher, views, scan)
    theirs = pseudo_labels.task_of_teacher
    renamed = f"; its {theirs.targets[0]} is taken for {task.targets[0]}" if theirs.targets != task.targets else ""
    console.say(f"{teacher} labels those of {len(pseudo_labels.images)} photographs that have no labels here{renamed}")
    return pseudo_labels


def _train(training: Training, as_json: bool) -> None:
    """Train to the end or until Ctrl-C and print the result; of several processes the first one prints."""
    from interpreter.counting import cost_of

    scan = training.network.scan
    console.say(
        f"{len(training.train_images)} training and {len(training.validation_images)} validation images, "
        f"{cost_of(training.network)}{'' if scan is None else f', selective scan by {scan}'}"
    )
    if training.is_finished:
        console.note(f"the training in {training.folder} has finished already")
    training.prepare()  # before Ctrl-C waits for a step
    left = (training.epochs - training.epoch) * training.steps_per_epoch - training.next_batch
    first = training.accelerator.is_main_process
    stop, single_process = Stop(), training.accelerator.num_processes == 1
    say = partial(console.say, "finishing a step; Ctrl-C again interrupts at once")
    with (
        stop.on_interrupt(say, single_process=single_process),
        console.progress("training", left, hidden=not first or training.is_finished, as_json=as_json) as advance,
    ):
        dice = training.run(lambda epoch, _, loss: advance(1, f"epoch {epoch + 1}, loss {loss:.3f}"), stop)
    if not first:
        return
    if not (training.folder / DOMAIN_FILE).is_file():
        console.note(f"it cannot flag unusual photographs: that takes at least {MIN_IMAGES} training images")
    if as_json:
        report = {
            "interpreter": str(training.folder),
            "validation_dice": finite_or_none(dice),
            "epochs": training.epoch,
        }
        console.print_json(report)
    elif math.isnan(dice):
        console.print_line(f"{training.folder}: trained to the last epoch without validation images")
    else:
        hint = how_to_try(training.folder, training.spec)
        console.print_line(f"{training.folder}: validation Dice {100 * dice:.2f}; try it: {hint}")
