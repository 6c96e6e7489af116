"""``interpreter segment``: label maps of photographs whose features are in a store, labelled or not."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from interpreter.checkpoint import Card, folder_of, load_interpreter
from interpreter.data import Labelled, all_images
from interpreter.domain import Domain, load_domain
from interpreter.expected import expected_of
from interpreter.network import Interpreter
from interpreter.options import (
    AsJson,
    Datasets,
    DeviceOption,
    MirroredOption,
    ResolutionOption,
    ScanOption,
    StoreOption,
    ViewOption,
    require_device,
)
from interpreter.prediction import segment
from interpreter.rendering import write_label_maps
from interpreter.stored import mirrored_features, require_features, views_read
from store import console
from store.feature_store import FeatureStore
from store.files import replaced
from store.spec import FeatureSpec
from store.views import IDENTITY

app = typer.Typer()
TABLE = "segmented.csv"


@app.command(
    "segment",
    epilog="Example: extractor run --dataset folder:photos --preset fast --preprocessing red-free "
    "--store features.zarr && "
    "interpreter segment --store features.zarr --dataset photos --model vessels --out masks",
)
def segment_command(
    store: StoreOption,
    dataset: Datasets,
    out: Annotated[Path, typer.Option(help="Folder of the label maps.", show_default=False)],
    model: Annotated[str, typer.Option(help="Shipped name or folder of an interpreter.")] = "vessels",
    view: ViewOption = IDENTITY,
    mirrored: MirroredOption = False,
    resolution: ResolutionOption = None,
    scan: ScanOption = "auto",
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Segment photographs whose features are in the store; they need no labels.

    Writes a PNG of native size for each, with class ids as values (overlapping classes have one each besides), and
    a table, segmented.csv: the share of the field of view that each class takes, the Dice that is expected of its mask
    (by its probabilities: too high on strange cameras), how much the timesteps disagree, and how far the photograph
    is from those it was trained on, or adapted to.
    """
    views = views_read(view, mirrored=mirrored)
    features = FeatureStore(store, read_only=True)
    interpreter, card = load_interpreter(model)
    interpreter.use_scan(scan)
    interpreter.to(require_device(device))
    named = {image.name: image for reference in dataset for image in all_images(features, reference)}
    images = [image.seen_as(view) for image in named.values()]
    spec = card.spec.of_resolution(resolution)
    require_features(features, spec, images, views, card.backbone)
    domain = load_domain(folder_of(model), card.spec)
    out.mkdir(parents=True, exist_ok=True)
    with console.progress("segmenting", len(images), quiet=as_json) as advance:
        rows = []
        for row in segmented(features, spec, interpreter, card, domain, images, out, mirrored=mirrored):
            rows.append(row)
            advance(1, str(row["image"]))
    with replaced(out / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    if as_json:
        console.print_json(rows)
        return
    unusual = [row for row in rows if row["unusual"]]
    shown = Table("image", *(f"{name} %" for name in card.task.classes[1:]), "disagreement", "unusual")
    for row in rows:
        areas = [f"{100 * row[f'share_{name}']:.2f}" for name in card.task.classes[1:]]
        shown.add_row(str(row["image"]), *areas, f"{row['disagreement']:.3f}", str(row["unusual"]))
    console.out.print(shown)
    console.out.print(
        f"{out}: {len(rows)} label maps and {TABLE}"
        + (f"; do not rely on {len(unusual)} of them, unlike the photographs it knows" if unusual else ""),
        soft_wrap=True,
    )


def segmented(
    store: FeatureStore,
    spec: FeatureSpec,
    interpreter: Interpreter,
    card: Card,
    domain: Domain | None,
    images: Sequence[Labelled],
    out: Path,
    *,
    mirrored: bool = False,
) -> Iterator[dict[str, Any]]:
    """What is found in each image, once its label map is written."""
    for image in images:
        entry = store.entry(spec, image.key).features()
        flips = mirrored_features(store, spec, image) if mirrored else None
        prediction, labels, masks = segment(interpreter, entry, flips)
        file = write_label_maps(out, image.name, labels, masks, card.task)
        names = card.task.targets
        found = [labels == c for c in range(1, len(names) + 1)] if masks is None else list(masks)
        inside = entry.geometry.restore(entry.fov).astype(np.bool_)
        expected = expected_of(prediction, entry.fov)
        score = None if domain is None else domain.score(entry, interpreter.codec)
        yield {
            "image": image.name,
            "file": file.relative_to(out).as_posix(),
            "mirrored": mirrored,
            **{f"share_{name}": float(mask[inside].mean()) for name, mask in zip(names, found, strict=True)},
            **{f"expected_dice_{name}": dice for name, dice in zip(names, expected, strict=True)},
            "disagreement": float(prediction.disagreement[entry.fov].mean()),
            "distance": None if score is None else score.distance,
            "unusual": "" if score is None else " ".join(score.reasons),
        }
