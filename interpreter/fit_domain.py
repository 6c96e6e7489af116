"""Fit the domain of an interpreter to the features of its training images.

    python -m interpreter.fit_domain MODEL --store STORE

writes ``domain.safetensors`` beside the interpreter; the service reads it from there. A training does so by itself.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from interpreter.checkpoint import folder_of, load_interpreter
from interpreter.domain import domain_of
from interpreter.errors import ConfigurationError, InterpreterError
from store import console
from store.errors import StoreError
from store.feature_store import FeatureStore
from store.manifest import read_manifest, seal

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m interpreter.fit_domain runs/mine --store features.zarr")
def fit(
    model: Annotated[str, typer.Argument(help="Shipped name or folder of an interpreter.")],
    store: Annotated[str, typer.Option(help="The store with its training images' features.")],
) -> None:
    """Write domain.safetensors: what the service measures a photograph's distance from the training images with."""
    _, card = load_interpreter(model)
    if "adapted_to" in card.training:
        raise ConfigurationError(
            f"{model} was adapted to a camera, whose photographs it is measured by; `interpreter adapt` fits them anew"
        )
    domain = domain_of(card, FeatureStore(store, read_only=True))
    folder = folder_of(model)
    path = domain.save(folder)
    if (manifest := read_manifest(folder)) is not None:
        seal(folder, manifest)
    usual = domain.residual_range
    console.out.print(
        f"{path}: distance up to {domain.threshold:.2f}, {len(domain.mean)} numbers of an image; residual "
        + ("not judged, some features were stored without" if usual is None else f"{usual[0]:.2g} to {usual[1]:.2g}")
    )


def main() -> NoReturn:
    """Entry point."""
    console.run(app, InterpreterError, StoreError)


if __name__ == "__main__":
    main()
