"""A table of drawn photographs for every data set of the recipes, and a tiny backbone recipe: for smoke runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawn import draw_photograph
from extractor.architectures import plain_unet
from recipes.shipped import INTERPRETERS, BackboneRecipe

SMOKE_BACKBONE = BackboneRecipe(
    "small",
    steps=1,
    batch=1,
    crop=32,
    resolution=64,
    config=json.dumps(plain_unet((4, 4, 4, 4, 4), norm_groups=2)),
    codebook_photographs=1,
)


def draw_table(folder: Path, side: int = 96) -> Path:
    """Draw two photographs for each split of each data set, with round masks of every target.

    Args:
        folder: receives the images and ``splits.csv``; nothing is drawn if that table is there.
        side: side of the photographs, in pixels.

    Returns:
        The table's path.
    """
    table = folder / "splits.csv"
    if table.is_file():
        return table
    sources = {p.source.dataset: p.source for r in INTERPRETERS.values() for p in (*r.train, *r.test)}
    targets = sorted({target for source in sources.values() for target in source.targets})
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for s, (dataset, source) in enumerate(sources.items()):
        splits = ["train"] * (4 + source.held_out) if source.held_out else ["train"] * 2 + ["test"] * 2
        for i, split in enumerate(splits):
            rows.append(_draw(folder / dataset, f"eye{i:02}", 100 * s + i, side, source.targets) | {"split": split})
    rows += [_draw(folder / "UNLABELLED", f"eye{i}", 9000 + i, side, ()) | {"split": "unlabelled"} for i in range(2)]
    partial = table.with_suffix(".tmp")
    with partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, ["dataset", "split", "image", *targets], restval="")
        lines.writeheader()
        lines.writerows(rows)
    partial.rename(table)
    return table


def _draw(folder: Path, name: str, seed: int, side: int, targets: tuple[str, ...]) -> dict[str, str]:
    """Draw a photograph and its masks; return its row of the table, without the split."""
    pixels, vessels = draw_photograph(side, seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    row = {"dataset": folder.name, "image": f"{folder.name}/images/{name}.png"}
    masks = {
        target: vessels if target == "vessel" else np.hypot(x, y) < 0.2 / (1 + i) for i, target in enumerate(targets)
    }
    for target, mask in masks.items():
        row[target] = f"{folder.name}/{target}/{name}.png"
        _save(mask, folder.parent / row[target])
    _save(pixels, folder.parent / row["image"])
    return row


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
