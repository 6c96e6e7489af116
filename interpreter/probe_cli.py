"""``interpreter probe``: which timestep, block and encoding says most about a target?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from interpreter.data import labelled_in, notes_on_missing
from interpreter.errors import ConfigurationError
from interpreter.heat_map import Panel, draw_heat_map
from interpreter.options import AsJson, Datasets, StoreOption
from interpreter.probe import ProbeResult, ProbeSettings, probe
from interpreter.rendering import encode_picture
from interpreter.splits import draw_subset
from interpreter.stored import store_spec
from interpreter.task import Task
from store import console
from store.codebook import load_codebook
from store.codecs import Codec, codec_for
from store.collection import UNNAMED_TARGET
from store.feature_store import FeatureStore
from store.spec import AffineEncoding, Encoding, FeatureSpec, FloatEncoding

app = typer.Typer()
_PLAIN: dict[str, Encoding] = {
    "float32": FloatEncoding(kind="float32"),
    "float16": FloatEncoding(kind="float16"),
    "int8": AffineEncoding(),
}
_FINER = {"float16": ("float32",), "int8": ("float32", "float16"), "compact": ("float32", "float16", "int8")}
"""Encodings that are finer than the stored one, which it has lost."""


@app.command(
    "probe",
    epilog="Example: interpreter probe --store features.zarr --dataset stare:train --target vessel "
    "--encodings float16,int8 --out probe.png",
)
def probe_command(
    store: StoreOption,
    dataset: Datasets,
    score_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Data set to score on, NAME or NAME:SPLIT; probes are then fitted to all of --dataset. May be given "
            "again."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask to predict. May be given again: photographs that have a mask of another one only then count as "
            "having none of this.",
            show_default=UNNAMED_TARGET,
        ),
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="Digest of the features to read, where the store holds several specs.")
    ] = None,
    encodings: Annotated[
        str | None,
        typer.Option(help="Encodings to compare, such as float16,int8.", show_default="the stored one"),
    ] = None,
    codebook: Annotated[
        Path | None, typer.Option(help="Codebook of the compact encoding, from extractor fit-codebook.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=2, help="Number of images of --dataset to use, drawn by --seed.", show_default="all"),
    ] = None,
    pixels: Annotated[int, typer.Option(min=2, help="Pixels drawn from each image that probes are fitted to.")] = 2000,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.99,
            help="Share of the images that probes are scored on, where --score-on names none.",
        ),
    ] = 0.4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images and pixels that are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="PNG to draw the tables into, as a heat map.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a linear probe for each timestep, block and encoding, and print its average precision on held-out images."""
    features = FeatureStore(store, read_only=True)
    read = store_spec(features, spec)
    settings = ProbeSettings(pixels=pixels, held_out=held_out, seed=seed)
    through = codecs_named(encodings, read, codebook)
    task = Task(name="probed", targets=tuple(target or [UNNAMED_TARGET]), overlapping=True)
    found, scored = (labelled_in(features, references, task) for references in (dataset, score_on or []))
    for line in notes_on_missing(features, [*dataset, *(score_on or [])], task):
        console.note(line)
    chosen = found if images is None else draw_subset(found, images, seed)
    probed = probe(features, read, task.targets, chosen, through, settings, scored)
    panels = panels_of(probed)
    if out is not None:
        out.write_bytes(encode_picture(draw_heat_map(panels)))
    if as_json:
        console.print_json([dataclasses.asdict(one) for one in probed])
        return
    for panel in panels:
        console.out.print(_table(panel))
    best = max(probed, key=lambda one: one.average_precision)
    console.print_line(
        f"best: t = {best.timestep}, {best.block}, {best.encoding}; "
        f"a random guess scores {100 * best.prevalence:.1f} for {best.target}" + (f"; {out}" if out is not None else "")
    )


def codecs_named(names: str | None, spec: FeatureSpec, codebook: Path | None = None) -> dict[str, Codec | None]:
    """{encoding: its codec for the spec's blocks}; the stored encoding, which needs none, if no names are given.

    Args:
        names: separated by commas.
        codebook: a file, for ``compact``.

    Raises:
        ConfigurationError: no such encoding, one that is finer than what is stored, or ``compact`` without a
            codebook.
        StoreError: the codebook cannot be read, or is of other blocks.
    """
    codecs: dict[str, Codec | None] = {}
    for name in [part.strip() for part in (names or spec.encoding.kind).split(",")]:
        if name == spec.encoding.kind:
            codecs[name] = None
        elif name in _FINER.get(spec.encoding.kind, ()):
            raise ConfigurationError(
                f"the store holds {spec.encoding.kind}, which is coarser than {name}: extract with --encoding {name} "
                "to compare them"
            )
        elif name == "compact":
            if codebook is None:
                raise ConfigurationError("compact needs --codebook; `extractor fit-codebook` makes one")
            code = load_codebook(codebook)
            codecs[name] = codec_for(spec.with_encoding(code.encoding), code)
        elif name in _PLAIN:
            codecs[name] = codec_for(spec.with_encoding(_PLAIN[name]))
        else:
            raise ConfigurationError(f"no encoding {name!r}; there are {', '.join(_PLAIN)}, compact")
    return codecs


def panels_of(probed: list[ProbeResult]) -> list[Panel]:
    """One table for each target and encoding: timesteps down, blocks across."""
    panels = []
    for target, encoding in dict.fromkeys((one.target, one.encoding) for one in probed):
        mine = [one for one in probed if (one.target, one.encoding) == (target, encoding)]
        values = {(f"t = {one.timestep}", one.block): one.average_precision for one in mine}
        rows, columns = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
        panels.append(Panel(f"{target}, {encoding}", rows, columns, values))
    return panels


def _table(panel: Panel) -> Table:
    table = Table("", *panel.columns, title=f"average precision x 100: {panel.title}")
    for row in panel.rows:
        table.add_row(row, *[f"{100 * panel.values[row, column]:.1f}" for column in panel.columns])
    return table
