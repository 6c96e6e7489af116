"""``interpreter fit-domain``: fit again what tells unusual photographs from the training images."""

from __future__ import annotations

from typing import Annotated

import typer

from interpreter.checkpoint import folder_of, load_interpreter
from interpreter.domain import domain_of
from interpreter.errors import ConfigurationError
from interpreter.options import AsJson
from store import console
from store.feature_store import FeatureStore
from store.manifest import read_manifest, seal

app = typer.Typer()


@app.command("fit-domain", epilog="Example: interpreter fit-domain runs/mine --store features.zarr")
def fit(
    model: Annotated[str, typer.Argument(help="Shipped name or folder of an interpreter.")],
    store: Annotated[str, typer.Option(help="Store that holds the features of its training images.")],
    as_json: AsJson = False,
) -> None:
    """Write domain.safetensors, by which photographs are recognised as unlike the training images.

    A training writes it by itself, into the interpreter's folder, where `segment` and the service read it.
    """
    _, card = load_interpreter(model)
    if card.training.adapted_to is not None:
        raise ConfigurationError(
            f"{model} was adapted to a camera, whose photographs are its domain; run `interpreter adapt` again"
        )
    domain = domain_of(card, FeatureStore(store, read_only=True))
    folder = folder_of(model)
    path = domain.save(folder)
    if (manifest := read_manifest(folder)) is not None:
        seal(folder, manifest)
    usual = domain.residual_range
    if as_json:
        console.print_json({"domain": str(path), "threshold": domain.threshold, "residual_range": usual})
        return
    console.print_line(
        f"{path}: distance up to {domain.threshold:.2f}, {len(domain.mean)} statistics of an image; residual "
        + (
            "not judged, as some features were stored without it"
            if usual is None
            else f"{usual[0]:.2g} to {usual[1]:.2g}"
        )
    )
