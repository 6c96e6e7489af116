"""``interpreter evaluate``: score one interpreter, or run a whole protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from interpreter.checkpoint import Card
from interpreter.data import LabelledImage, all_images, labelled_for
from interpreter.metrics import in_points
from interpreter.on_disk import NamedPhotographs
from interpreter.options import (
    AsJson,
    DataOption,
    DatasetsOrData,
    DeviceOption,
    MirroredOption,
    ResolutionOption,
    ScanOption,
    SplitOption,
    StoreOption,
    ViewOption,
    open_model,
    photographs_named,
)
from interpreter.prediction import Segmentation
from interpreter.protocols.protocol import ROWS, Edition
from interpreter.rendering import write_label_maps
from interpreter.rules import Rules, Size
from interpreter.scan import Method
from interpreter.splits import group_of
from interpreter.stored import require_features, views_read
from store import console
from store.feature_store import FeatureStore
from store.views import IDENTITY

if TYPE_CHECKING:
    from interpreter.evaluation import Compared, Scores

app = typer.Typer()
SHOWN = {
    "expected_dice": "expected Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auc_roc": "AUC-ROC",
    "auc_pr": "AUC-PR",
    "calibration_error": "calibration error",
}


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Examples: interpreter evaluate --store features.zarr --data folder:photos --model vessels · "
    "interpreter evaluate --store features.zarr --dataset chase_db1:test --model runs/vessels · "
    "interpreter evaluate --protocol lodo-vessels --data stare:/data/STARE --data hrf:/data/HRF --store features.zarr "
    "--out runs/lodo --seeds 0 1 2",
)
def evaluate(
    context: typer.Context,
    store: StoreOption,
    dataset: DatasetsOrData = None,
    data: DataOption = None,
    split: SplitOption = None,
    model: Annotated[str, typer.Option(help="Shipped name or folder of an interpreter.")] = "vessels",
    view: ViewOption = IDENTITY,
    mirrored: MirroredOption = False,
    resolution: ResolutionOption = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write label maps to, PNG at native size; overlapping classes get one mask each as well."
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="Size at which masks are compared: network, native, or the side in pixels of a square, such as 512, "
            "to compare networks of several resolutions."
        ),
    ] = "network",
    region: Annotated[
        Literal["fov", "image"], typer.Option(help="Pixels that count: those of the field of view, or all.")
    ] = "fov",
    scan: ScanOption = "auto",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Run this protocol in place of scoring one model: extraction, training and scoring.",
            rich_help_panel="Protocols",
        ),
    ] = None,
    edition: Annotated[Edition, typer.Option(help="Edition of the protocol.", rich_help_panel="Protocols")] = "strict",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the protocol; an interrupted run resumes.", rich_help_panel="Protocols"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Test on this data set only. May be given again.", rich_help_panel="Protocols"),
    ] = None,
    rows: Annotated[
        str, typer.Option(help=f"Methods, separated by commas: {', '.join(ROWS)}.", rich_help_panel="Protocols")
    ] = "diffdgss",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0 1 2.", rich_help_panel="Protocols")] = "0",
    settings: Annotated[
        str | None,
        typer.Option(
            help='JSON of further settings, such as \'{"epochs": 30, "backbone": "small"}\'.',
            rich_help_panel="Protocols",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Score an interpreter on labelled images, or run a whole protocol (--protocol) and write its report."""
    _require_options_of(context, _OF_A_MODEL if protocol is not None else _OF_A_PROTOCOL, protocol)
    if protocol is not None:
        from interpreter.protocol_cli import run_protocol

        run_protocol(
            (protocol, edition), store=store, data=data or [], out=out, targets=target or [], rows=rows,
            seeds=[seeds, *context.args], settings=settings, device=device, mirrored=mirrored, as_json=as_json,
        )  # fmt: skip
        return
    if context.args:
        raise typer.BadParameter(f"{' '.join(context.args)} belongs to a protocol; name it with --protocol")
    photographs = photographs_named(dataset, data, split)
    rules = Rules(size=_compared_size(size), region=region)
    _evaluate_model(
        store=store, photographs=photographs, model=model, view=view, mirrored=mirrored, resolution=resolution,
        masks=masks, rules=rules, scan=scan, device=device, as_json=as_json,
    )  # fmt: skip


_OF_A_MODEL = ("dataset", "split", "model", "view", "resolution", "masks", "size", "region", "scan")
_OF_A_PROTOCOL = ("edition", "out", "target", "rows", "seeds", "settings")


def _compared_size(text: str) -> Size:
    try:
        return TypeAdapter[Size](Size).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(
            f"--size: expected network, native or a number of pixels such as 512, got {text!r}"
        ) from error


def _require_options_of(context: typer.Context, others: Sequence[str], protocol: str | None) -> None:
    """BadParameter names an option that would have no effect: of a protocol without one, or of a model with one."""
    if given := console.options_given(context, others):
        whose = "a protocol; name it with --protocol" if protocol is None else "one model; the protocol decides it"
        raise typer.BadParameter(f"{', '.join(given)} belongs to {whose}")


def _evaluate_model(
    *,
    store: str,
    photographs: NamedPhotographs,
    model: str,
    view: str,
    mirrored: bool,
    resolution: int | None,
    masks: Path | None,
    rules: Rules,
    scan: Method,
    device: str,
    as_json: bool,
) -> None:
    from interpreter.evaluation import evaluate as evaluate_images

    views = views_read(view, mirrored=mirrored)
    interpreter, card = open_model(model, scan, device)
    spec = card.spec.with_resolution(resolution)
    extracted = photographs.extract_missing(store, model, card, [spec], views, device, labelled=True)
    features = FeatureStore(store, read_only=True)
    labelled, notes = labelled_for(features, extracted.references, card.task)
    for line in notes:
        console.note(line)
    images = [image.seen_as(view) for image in labelled]
    _note_seen(features, images, card)
    require_features(features, spec, images, views, card.backbone)
    with console.progress("evaluating", len(images), as_json=as_json) as advance:

        def on_image(image: LabelledImage, found: Segmentation, _: Compared) -> None:
            if masks is not None:
                write_label_maps(masks, image.name, found.labels, found.layers, card.task)
            advance(1, image.name)

        scores = evaluate_images(
            interpreter, features, spec, card.task, images, on_image, rules=rules, mirrored=mirrored
        )
    if as_json:
        read = {"view": view, "mirrored": mirrored, "resolution": spec.resolution}
        console.print_json(read | scores.summary())
    else:
        console.out.print(_table(scores, rules))
        console.out.print(_table_of_images(scores))
    console.exit_after(extracted.left_out)


def _note_seen(store: FeatureStore, images: Sequence[LabelledImage], card: Card) -> None:
    """Say which of the images, or of their groups, the interpreter has seen: then the scores are too good."""
    if seen := {image.key.image_id for image in images} & card.seen_ids:
        chose = len(seen.intersection(card.validation_ids))
        how = f", {chose} of them to choose its epoch" if chose else ""
        console.note(f"{len(seen)} of these images were used to train this interpreter{how}: the scores are too good")
    everything = [image for name in {image.dataset for image in images} for image in all_images(store, name)]
    groups = {group_of(image) for image in everything if image.key.image_id in card.seen_ids}
    others = [image for image in images if group_of(image) in groups and image.key.image_id not in seen]
    if others:
        console.note(f"{len(others)} of these images are of groups (patients) that it was trained on")


def _table(scores: Scores, rules: Rules) -> Table:
    """A row for each metric in points of 100; a column for each class, and one for the mean of several."""
    columns = [(name, scores.class_figures(i), scores.class_interval(i)) for i, name in enumerate(scores.classes)]
    by_voter = [scores.class_dice_by_voter(i) for i in range(len(scores.classes))]
    if len(columns) > 1:
        columns.append(("mean", scores.figures(), scores.interval()))
        by_voter.append(scores.dice_by_voter())
    table = Table("points of 100", *(name for name, *_ in columns))
    counts = [scores.images_of(i) for i in range(len(scores.classes))]
    if min(counts) < len(scores.images):
        table.add_row("images", *map(str, counts), *[""] * (len(columns) - len(counts)))
    table.add_row("Dice", *(in_points(figures["dice"]) for _, figures, _ in columns))
    table.add_row("95 % interval", *(_interval(*bounds) for _, _, bounds in columns))
    where = "" if rules.size == "network" else ", at the network's size"
    for voter in by_voter[0]:
        alone = f"t = {voter}" if voter.isdecimal() else voter
        table.add_row(f"Dice of {alone} alone{where}", *(in_points(of_class[voter]) for of_class in by_voter))
    for name, words in SHOWN.items():
        table.add_row(words, *(in_points(figures[name]) for _, figures, _ in columns))
    return table


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{in_points(low)} to {in_points(high)}"


def _table_of_images(scores: Scores) -> Table:
    """A row for each image; a column for each of several classes, and one for their mean."""
    classes = scores.classes if len(scores.classes) > 1 else ()
    table = Table("image", *classes, "mean Dice" if classes else "Dice", "expected Dice")
    for image in scores.images:
        of_class = [None if counts is None else counts.dice for counts in image.voted] if classes else []
        table.add_row(image.name, *map(in_points, (*of_class, image.dice, image.expected_dice)))
    return table
