"""Options that several commands of ``interpreter`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import typer

from interpreter.checkpoint import Card, load_interpreter
from interpreter.errors import ConfigurationError
from interpreter.network import Interpreter
from interpreter.on_disk import NamedPhotographs
from interpreter.scan import Method
from store import console
from store.console import AsJson as AsJson
from store.console import DeviceOption as DeviceOption
from store.errors import SpecError
from store.views import is_upright, parse_views

StoreOption = Annotated[
    str, typer.Option(help="Folder of the feature store, or s3://bucket/prefix.", show_default=False)
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset", help="Data set in the store, NAME or NAME:SPLIT. May be given again.", show_default=False
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Photographs on disk, ADAPTER:PATH or NAME=ADAPTER:PATH; features that the store lacks are extracted "
        "first (by extractor run). May be given again.",
    ),
]
DatasetsOrData = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Data set in the store, NAME or NAME:SPLIT. May be given again."),
]
SplitOption = Annotated[str | None, typer.Option(help="Read only this split of --data.")]


def photographs_named(dataset: Sequence[str] | None, data: Sequence[str] | None, split: str | None) -> NamedPhotographs:
    """The photographs that the three options name; BadParameter if they name none."""
    if not dataset and not data:
        raise typer.BadParameter("expected --dataset, a data set in the store, or --data, photographs on disk")
    if split is not None and not data:
        raise typer.BadParameter(
            "--split belongs to --data; write --dataset NAME:SPLIT for a split of a data set in the store"
        )
    return NamedPhotographs(dataset or (), data or (), split)


def _upright(view: str) -> str:
    if not is_upright(view):
        raise typer.BadParameter(
            f"expected a single view other than a flip, such as identity or red-free, got {view!r}"
        )
    return view


ViewOption = Annotated[
    str,
    typer.Option(
        help="View of each image to read, such as red-free or negative; --dataset must have been extracted so.",
        callback=_upright,
    ),
]
MirroredOption = Annotated[
    bool,
    typer.Option(
        "--mirrored",
        help="Test-time augmentation: read the three flips of each image as well and average the predictions; a little "
        "better, for four times the work. Images of --dataset must have been extracted with --views identity,flips.",
    ),
]
ResolutionOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Side in pixels at which photographs are read, which matters where a camera shows more of the retina than "
        "those of the training; images of --dataset must have been extracted with this --resolution.",
        show_default="the interpreter's",
    ),
]
ScanOption = Annotated[Method, typer.Option(help="Implementation of the selective scan; auto chooses by device.")]


def views_named(text: str) -> tuple[str, ...]:
    """Parse views as a user lists them (``store.views.parse_views``); ConfigurationError lists the views there are."""
    try:
        return parse_views(text)
    except SpecError as error:
        raise ConfigurationError(str(error)) from error


def open_model(name: str, scan: Method, device: str) -> tuple[Interpreter, Card]:
    """Load an interpreter by shipped name or folder onto a device; return it with its card."""
    interpreter, card = load_interpreter(name)
    if not card.metrics.finished:
        console.note(
            f"the training of {name} has not finished: its temperature and domain are missing; the command that began "
            "it continues"
        )
    interpreter.use_scan(scan)
    return interpreter.to(require_device(device)), card


def require_device(device: str) -> str:
    """Return ``device`` if tensors can be put on it; ConfigurationError says why not."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either where there is no such device
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"the device {device!r} cannot be used: {reason}") from error
    return device
