"""Photographs of a recipe, taken from one table of all data sets.

The table is a CSV file: columns ``dataset``, ``split`` and ``image``, and one column for each target with the
paths of its masks, all relative to the table's folder. Its ``split`` is ``train``, ``test`` or ``unlabelled``; a
note in brackets may follow.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import DatasetError


@dataclass(frozen=True)
class Source:
    """One data set of the table.

    Attributes:
        name: in the store.
        dataset: in the table.
        targets: masks that are taken.
        terms: licence as it was found.
        held_out: where the table has no test split of this data set: the last so many by name become one.
    """

    name: str
    dataset: str
    targets: tuple[str, ...]
    terms: str
    held_out: int = 0

    def write_manifest(self, table: Path, folder: Path) -> Path:
        """The rows of this data set as the CSV file that the adapter ``manifest`` reads: image, split, targets.

        Raises:
            DatasetError: the table has no photograph of this data set.
        """
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = sorted((row for row in csv.DictReader(file) if row["dataset"] == self.dataset), key=_image)
        if not rows:
            raise DatasetError(f"{table}: no photograph of {self.dataset} in it; the recipe of {self.name} needs some")
        first_held_out = len(rows) - self.held_out
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["image", "split", *self.targets])
            for i, row in enumerate(rows):
                named = row["split"].partition("(")[0]  # such as test(dev)
                split = named if not self.held_out else "test" if i >= first_held_out else "train"
                masks = [_absolute(table, row.get(target) or "") for target in self.targets]
                lines.writerow([_absolute(table, row["image"]), split, *masks])
        return path


def folders_of(table: Path, split: str) -> list[Path]:
    """The folders that hold the table's photographs of a split, each once."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        images = [table.parent / row["image"] for row in csv.DictReader(file) if row["split"] == split]
    return sorted({image.parent for image in images})


def _image(row: dict[str, str]) -> str:
    return row["image"]


def _absolute(table: Path, path: str) -> str:
    return str((table.parent / path).resolve()) if path else ""
