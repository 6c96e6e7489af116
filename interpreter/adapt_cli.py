"""``interpreter adapt``: choose, without labels, the resolution at which to read a new camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from interpreter.adapting import Expected, best_of, expected_at, gains, readable_specs, save_adapted
from interpreter.checkpoint import folder_of, how_to_try
from interpreter.data import all_images
from interpreter.domain import DOMAIN_FILE, MIN_IMAGES, load_domain
from interpreter.metrics import finite_or_none
from interpreter.options import (
    AsJson,
    DataOption,
    DatasetsOrData,
    DeviceOption,
    ScanOption,
    SplitOption,
    StoreOption,
    ViewOption,
    open_model,
    photographs_named,
)
from interpreter.stored import require_features
from interpreter.task import Task
from store import console
from store.feature_store import FeatureStore
from store.spec import FeatureSpec
from store.views import IDENTITY

app = typer.Typer()
TRIED = (384, 512, 704, 1024)
"""Resolutions at which photographs on disk are read, besides that of the training, unless the user names some."""


@app.command(
    "adapt",
    epilog="Example: interpreter adapt --store features.zarr --data folder:photos --model vessels "
    "--out runs/vessels-here",
)
def adapt_command(
    store: StoreOption,
    dataset: DatasetsOrData = None,
    data: DataOption = None,
    split: SplitOption = None,
    model: Annotated[str, typer.Option(help="Shipped name or folder of an interpreter.")] = "vessels",
    resolution: Annotated[
        list[int] | None,
        typer.Option(
            min=8,
            help="Side in pixels to try. May be given again.",
            show_default=f"those in the store; for --data {', '.join(map(str, TRIED))}",
        ),
    ] = None,
    view: ViewOption = IDENTITY,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a copy of the interpreter that reads at the best resolution.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
    scan: ScanOption = "auto",
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Choose the resolution at which an interpreter reads the photographs of a new camera; they need no labels.

    Cameras show more or less of the retina in the same square. At each resolution the interpreter computes the Dice it
    expects of its own masks. That is too high on unfamiliar cameras, but it ranks the resolutions well. The resolution
    of the training is kept unless another one is better by three standard errors, so give it as many photographs as
    there are.
    """
    photographs = photographs_named(dataset, data, split)
    if out is not None and out.resolve() == folder_of(model).resolve():
        raise typer.BadParameter("expected another folder in --out than that of --model, which it would replace")
    if out is not None:
        console.require_unused(out, overwrite=overwrite)
    interpreter, card = open_model(model, scan, device)
    sides = sorted(set(resolution or ({interpreter.spec.resolution, *TRIED} if data else ())))
    specs = [card.spec.with_resolution(side) for side in sides]
    extracted = photographs.extract_missing(store, model, card, specs, (view,), device)
    features = FeatureStore(store, read_only=True)
    named = {image.key.image_id: image for one in extracted.references for image in all_images(features, one)}
    images = [image.seen_as(view) for image in named.values()]
    for spec in specs:
        require_features(features, spec, images, (view,), card.backbone)
    specs = specs or readable_specs(features, card, images, console.note)
    with console.progress("reading", len(specs) * len(images), as_json=as_json) as advance:
        expected = [
            expected_at(interpreter, features, spec, images, lambda image: advance(1, image.name)) for spec in specs
        ]
    learnt = interpreter.spec.resolution
    best = best_of(expected, learnt).spec.resolution
    for note in _notes(specs, best, learnt, len(images)):
        console.note(note)
    if out is not None:
        domain = load_domain(folder_of(model), card.spec)
        save_adapted(out, interpreter, card, features, images, expected, domain)
    if as_json:
        report = {"photographs": len(images), "learnt_at": learnt, "read": _plain(card.task, expected, learnt)}
        console.print_json(report | {"best": best, "out": out})
    else:
        console.out.print(_table(card.task, expected, learnt))
        as_before = best == card.spec.resolution
        reading = "as it does by itself" if as_before else f"read these photographs with --resolution {best}"
        console.print_line(f"best at {best}: {reading}")
    if out is not None:
        _print_copy(out, card.spec, model, len(images), as_json)
    console.exit_after(extracted.left_out)


def _print_copy(out: Path, spec: FeatureSpec, model: str, photographs: int, as_json: bool) -> None:
    """Say how to use the copy, and whether it can flag unusual photographs."""
    if not as_json:
        console.print_line(f"{out}: reads at that resolution by itself; try it: {how_to_try(out, spec)}")
    if not (out / DOMAIN_FILE).is_file():
        console.note(f"it cannot flag unusual photographs: that takes at least {MIN_IMAGES} photographs")
    elif photographs < MIN_IMAGES:
        console.note(
            f"it flags unusual photographs as {model} does; at least {MIN_IMAGES} would make a domain of their own"
        )


def _plain(task: Task, expected: Sequence[Expected], learnt: int) -> list[dict[str, Any]]:
    return [
        {
            "resolution": one.spec.resolution,
            "expected_dice": finite_or_none(one.dice),
            "by_class": dict(zip(task.targets, map(finite_or_none, one.by_class), strict=True)),
            "gain": None if gain is None else finite_or_none(gain[0]),
            "gain_error": None if gain is None else finite_or_none(gain[1]),
        }
        for one, gain in zip(expected, gains(expected, learnt), strict=True)
    ]


def _table(task: Task, expected: Sequence[Expected], learnt: int) -> Table:
    table = Table("resolution", *(f"expected Dice of {name}" for name in task.targets), f"gain over {learnt}")
    for one, gain in zip(expected, gains(expected, learnt), strict=True):
        difference = "" if gain is None else f"{100 * gain[0]:+.1f}"
        difference += f" ± {100 * gain[1]:.1f}" if gain is not None and math.isfinite(gain[1]) else ""
        table.add_row(str(one.spec.resolution), *(f"{100 * dice:.1f}" for dice in one.by_class), difference)
    return table


def _notes(specs: Sequence[FeatureSpec], best: int, learnt: int, photographs: int) -> list[str]:
    """Caveats of the choice, for the user."""
    sides, notes = [spec.resolution for spec in specs], []
    if len(sides) == 1:
        notes.append(
            "there is only one resolution to choose from; extract the photographs at others, such as 384 and 704"
        )
    elif learnt not in sides:
        notes.append(
            f"{learnt}, the resolution of the training, is not among them: the best is taken, however little it gains"
        )
    elif photographs < MIN_IMAGES:
        notes.append(f"fewer than {MIN_IMAGES} photographs are too few to decide: it stays at {learnt}")
    if best != learnt and best in (sides[0], sides[-1]):
        which = "smallest" if best == sides[0] else "largest"
        notes.append(f"{best} is the {which} resolution that was tried; one beyond it may be better")
    return notes
