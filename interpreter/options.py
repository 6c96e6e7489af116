"""Options that several commands have."""

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
from store.errors import SpecError
from store.views import is_upright, parse_views

StoreOption = Annotated[
    str, typer.Option(help="Folder of the feature store, or s3://bucket/prefix.", show_default=False)
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset", help="Data set in the store, NAME or NAME:SPLIT; may be given again.", show_default=False
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Photographs on disk, ADAPTER:PATH or NAME=ADAPTER:PATH; features of them that the store lacks are made "
        "first (extractor run); may be given again.",
    ),
]
DatasetsOrData = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Data set in the store, NAME or NAME:SPLIT; may be given again."),
]
SplitOption = Annotated[str | None, typer.Option(help="Only this split of --data.")]


def photographs_named(dataset: Sequence[str] | None, data: Sequence[str] | None, split: str | None) -> NamedPhotographs:
    """What the three options name; BadParameter if that is nothing."""
    if not dataset and not data:
        raise typer.BadParameter("expected --dataset of the store, or --data on disk")
    if split is not None and not data:
        raise typer.BadParameter("--split is of --data; of a data set in the store name it as NAME:SPLIT")
    return NamedPhotographs(dataset or (), data or (), split)


def _upright(view: str) -> str:
    if not is_upright(view):
        raise typer.BadParameter(f"expected one view that is no flip, such as identity or red-free, not {view!r}")
    return view


ViewOption = Annotated[
    str,
    typer.Option(
        help="Rendering of each image that is read, such as red-free or negative; of --dataset it was extracted.",
        callback=_upright,
    ),
]
MirroredOption = Annotated[
    bool,
    typer.Option(
        "--mirrored",
        help="Test-time augmentation: read each image's three flips as well (of --dataset extracted with --views "
        "identity,flips) and average what each voter says: a little better, for four times the work.",
    ),
]
ResolutionOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Read features of photographs shown in a square of so many pixels (of --dataset extracted with "
        "--resolution), which matters where a camera shows more of the retina than those that were learnt from.",
        show_default="the interpreter's",
    ),
]
ScanOption = Annotated[Method, typer.Option(help="Selective scan; auto goes by the device.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def views_named(text: str) -> tuple[str, ...]:
    """Views as a user lists them (``store.views.parse_views``); ConfigurationError says which there are."""
    try:
        return parse_views(text)
    except SpecError as error:
        raise ConfigurationError(str(error)) from error


def open_model(name: str, scan: Method, device: str) -> tuple[Interpreter, Card]:
    """An interpreter by shipped name or folder, on its device and with the scan that is asked for, and its card."""
    interpreter, card = load_interpreter(name)
    interpreter.use_scan(scan)
    return interpreter.to(require_device(device)), card


def require_device(device: str) -> str:
    """The device, if tensors can be put on it; ConfigurationError says why not."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"the device {device!r} cannot be used: {reason}") from error
    return device
