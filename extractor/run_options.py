"""The options of ``extractor run``, in the panels that its help shows them in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from extractor.adapters import ADAPTERS
from extractor.options import FEATURES
from store.spec import EncodingName

_photographs = partial(typer.Option, rich_help_panel="Photographs")
_features = partial(typer.Option, rich_help_panel=FEATURES)
_machines = partial(typer.Option, rich_help_panel="Machines")

Dataset = Annotated[str, typer.Option(help=f"ADAPTER:PATH; adapters: {', '.join(ADAPTERS)}.", show_default=False)]
Store = Annotated[str, typer.Option(help="Folder of the feature store, or s3://bucket/prefix.", show_default=False)]
Name = Annotated[
    str | None,
    typer.Option(
        help="Name of the data set in the store; another one of this name is replaced.",
        show_default="the adapter's or folder's",
    ),
]

Split = Annotated[str | None, _photographs(help="Read only this split.")]
LabelledOnly = Annotated[bool, _photographs("--labelled", help="Read only photographs that have a mask of a target.")]
Images = Annotated[str | None, _photographs(help="Read only photographs whose file names match, such as '*_left.jpg'.")]
Limit = Annotated[int | None, _photographs(min=1, help="Read only the first N of the photographs selected.")]
Views = Annotated[
    str, _photographs(help="Renderings of each photograph, such as identity,flips,photometric:8,red-free,negative.")
]
PhotographsOnly = Annotated[
    bool,
    _photographs(
        "--photographs",
        help="Store the photographs as the backbone is shown them, without features: for networks that read pixels.",
    ),
]

EncodingOption = Annotated[
    EncodingName | None, _features(help="How features are stored; compact is smallest.", show_default="the preset's")
]
CodebookOption = Annotated[
    Path | None,
    _features(help="Codebook of the compact encoding, from extractor fit-codebook.", show_default="the backbone's"),
]
ExpectSpec = Annotated[
    str | None,
    _features(help="Digest, or its first digits, that these options must lead to; else nothing is extracted."),
]

Batch = Annotated[
    int | None,
    _machines(
        min=1,
        help="Photographs in one forward; memory grows with it.",
        show_default="2; 1 with --workers or --scheduler; up to 16 on CUDA",
    ),
]
Workers = Annotated[
    int | None,
    _machines(min=1, help="Processes on this machine, of one thread each; on CUDA one for each GPU."),
]
Scheduler = Annotated[
    str | None,
    _machines(help="Address of a Dask scheduler whose workers extract, such as tcp://scheduler:8786."),
]
Compiled = Annotated[
    bool,
    _machines("--compile", help="Compile the network with torch.compile: takes minutes, for long runs on GPUs."),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Compute again what the store holds.")]
Profile = Annotated[bool, typer.Option("--profile", help="Print where the time went, by stage.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print how much would be written, and stop.")]
IgnoreSpace = Annotated[
    bool,
    typer.Option(
        "--ignore-space",
        help="Do not look beforehand how much there is to do, and whether it fits: for runs on very many photographs.",
    ),
]
