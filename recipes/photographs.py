"""The photographs of a recipe, taken from one table of all data sets.

The table is a CSV file with the columns ``dataset``, ``split`` and ``image``, and one column per target with the
paths of its masks; all paths are relative to the table's folder. ``split`` is ``train``, ``test`` or ``unlabelled``,
optionally followed by a note in brackets.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import DatasetError
from extractor.photographs import find_images
from store.files import replaced


@dataclass(frozen=True)
class SourceDataset:
    """One data set of the table.

    Attributes:
        name: its name in the store.
        dataset: its name in the table.
        targets: the targets whose masks are used.
        terms: its licence, as its source states it.
        held_out: number of photographs, the last by name, that become the test split if the table has none for this
            data set; the others are then for training, whatever the table calls them. 0 keeps the table's splits.
    """

    name: str
    dataset: str
    targets: tuple[str, ...]
    terms: str
    held_out: int = 0

    def write_manifest(self, table: Path, folder: Path) -> Path:
        """Write this data set's train and test rows as a CSV file for the adapter ``manifest``; return its path.

        Its columns are image, split and the targets. The file is replaced atomically, since other processes may be
        reading it.

        Raises:
            DatasetError: the table has no photograph of this data set.
        """
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = sorted((row for row in csv.DictReader(file) if row["dataset"] == self.dataset), key=_image)
        rows = [row for row in rows if _split(row) != "unlabelled"]
        if not rows:
            raise DatasetError(f"{table}: no photograph of {self.dataset} in it; the recipe of {self.name} needs some")
        has_test = any(_split(row) == "test" for row in rows)
        parted = self.held_out > 0 and not has_test
        first_held_out = len(rows) - self.held_out if parted else len(rows)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.csv"
        with replaced(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["image", "split", *self.targets])
            for i, row in enumerate(rows):
                split = "test" if i >= first_held_out else "train" if parted else _split(row)
                masks = [_absolute(table, row.get(target) or "") for target in self.targets]
                lines.writerow([_absolute(table, row["image"]), split, *masks])
        return path


def folders_of(table: Path, split: str) -> list[Path]:
    """The folders that hold the table's photographs of a split, each folder once.

    Raises:
        DatasetError: one of them also holds photographs that are not of this split.
    """
    with table.open(newline="", encoding="utf-8-sig") as file:
        images = {(table.parent / row["image"]).resolve() for row in csv.DictReader(file) if _split(row) == split}
    folders = sorted({image.parent for image in images})
    if strangers := [path for path in find_images(folders) if path.resolve() not in images]:
        raise DatasetError(
            f"{strangers[0]} lies beside photographs of split {split} but is none; move it, or list it in {table.name}"
        )
    return folders


def _split(row: dict[str, str]) -> str:
    """The split of a row without its note: ``test`` for ``test (dev)``."""
    return row["split"].partition("(")[0].strip()


def _image(row: dict[str, str]) -> str:
    return row["image"]


def _absolute(table: Path, path: str) -> str:
    return str((table.parent / path).resolve()) if path else ""
