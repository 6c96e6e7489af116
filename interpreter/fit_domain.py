"""Fit the domain of an interpreter to the features of its training images.

    python -m interpreter.fit_domain MODEL --store STORE

writes ``domain.safetensors`` beside the interpreter; the service reads it from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from interpreter.checkpoint import MODELS, Card, load_interpreter
from interpreter.domain import Domain, descriptor, fit_domain
from interpreter.errors import InterpreterError, TrainingDataError
from store import console
from store.errors import StoreError
from store.feature_store import FeatureStore
from store.features import Key

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m interpreter.fit_domain runs/mine --store features.zarr")
def fit(
    model: Annotated[str, typer.Argument(help="Shipped name or folder of an interpreter.")],
    store: Annotated[str, typer.Option(help="The store with its training images' features.")],
) -> None:
    """Write domain.safetensors: what the service measures a photograph's distance from the training images with."""
    _, card = load_interpreter(model)
    domain = domain_of(card, FeatureStore(store, read_only=True))
    shipped = MODELS / model
    path = domain.save(shipped if "/" not in model and shipped.is_dir() else Path(model))
    console.out.print(f"{path}: threshold {domain.threshold:.2f}, {len(domain.mean)} numbers of an image")


def domain_of(card: Card, store: FeatureStore) -> Domain:
    """The domain of the images that an interpreter was trained and selected on.

    Raises:
        TrainingDataError: their features are not in the store, or the card names fewer than five.
    """
    ids = (*card.training_ids, *card.validation_ids)
    if missing := [one for one in ids if not store.has(card.spec, Key(one))]:
        raise TrainingDataError(
            f"{store.location} lacks features of {len(missing)} of the {len(ids)} images that the interpreter was "
            f"trained on, {missing[0][:12]} among them; extract them first"
        )
    codec = store.codec(card.spec)
    return fit_domain(card.spec, (descriptor(store.entry(card.spec, Key(one)).features(), codec) for one in ids))


def main() -> NoReturn:
    """Entry point."""
    console.run(app, InterpreterError, StoreError)


if __name__ == "__main__":
    main()
