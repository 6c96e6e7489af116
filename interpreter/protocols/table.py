"""The scores of many experiments as one table, as JSON and as CSV."""

from __future__ import annotations

import csv
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from interpreter.evaluation import cluster_of
from interpreter.metrics import bootstrap_interval, finite_or_none, in_points
from interpreter.protocols.protocol import ROWS, Protocol, ProtocolSettings
from interpreter.protocols.running import Result
from interpreter.rules import BICUBIC

COMPAT_FILTER = f"Pillow {BICUBIC.name.lower()}, nearest for masks of one bit or with a palette, then != 0"
PACKAGES = ("diffdgss", "torch", "numpy", "numba", "monai", "zarr", "pillow", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class Cell:
    """The score of one method in one column, 0..1; its text is in points of 100.

    Attributes:
        value: mean over seeds; nan if the metric is unknown.
        by_seed: {seed: value}.
        interval: 95 % bootstrap interval over groups of test images, of each image's mean over seeds; None if the
            metric is not one of single images, or there is one group.
    """

    value: float
    by_seed: dict[int, float]
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        spread = f" ± {100 * np.std(list(self.by_seed.values())):.2f}" if len(self.by_seed) > 1 else ""
        interval = f" ({100 * self.interval[0]:.1f} to {100 * self.interval[1]:.1f})" if self.interval else ""
        return f"{in_points(self.value)}{spread}{interval}" if math.isfinite(self.value) else ""


Table = dict[str, dict[str, Cell]]
"""Cells by row and column: {row: {column: Cell}}."""


def tabulated(protocol: Protocol, results: Sequence[Result]) -> Table:
    """Build the table of a protocol, with rows and columns in the order of the experiments."""
    table: Table = {}
    for result in results:
        table.setdefault(result.experiment.row.name, {})
    for row, cells in table.items():
        of_row = [result for result in results if result.experiment.row.name == row]
        if protocol.by_class:
            for target in protocol.task.targets:
                cells[target] = _cell(
                    {r.experiment.seed: r.summary["by_class"].get(target, {}).get(protocol.metric) for r in of_row}
                )
            continue
        for column in dict.fromkeys(result.experiment.column for result in of_row):
            here = [result for result in of_row if result.experiment.column == column]
            interval = _interval(here) if protocol.metric == "dice" else None
            cells[column] = _cell({r.experiment.seed: r.summary[protocol.metric] for r in here}, interval)
    return table


def as_json(
    protocol: Protocol, settings: ProtocolSettings, data: dict[str, str], results: Sequence[Result]
) -> dict[str, Any]:
    """The whole report as plain JSON values."""
    table = tabulated(protocol, results)
    return {
        "protocol": protocol.name,
        "edition": protocol.edition,
        "description": protocol.description,
        "notes": list(protocol.notes),
        "metric": protocol.metric,
        "table": {
            row: {
                column: {
                    "value": finite_or_none(cell.value),
                    "by_seed": {seed: finite_or_none(value) for seed, value in cell.by_seed.items()},
                    "interval_95": cell.interval,
                }
                for column, cell in cells.items()
            }
            for row, cells in table.items()
        },
        "quoted": protocol.quoted,
        "rows": {row: ROWS[row].description for row in table},
        "seeds": sorted({result.experiment.seed for result in results}),
        "data": data,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "mask_filter": COMPAT_FILTER if protocol.edition == "aadg-compat" else "nearest",
        "results": [
            {"row": r.experiment.row.name, "column": r.experiment.column, "seed": r.experiment.seed} | r.summary
            for r in results
        ],
    }


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write the Dice of each image and the Dice expected without labels: a line per method, column, seed and image."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "column", "seed", "image", "dice", "expected_dice"))
        for result in results:
            experiment = result.experiment
            which = experiment.row.name, experiment.column, experiment.seed
            for image, scores in result.summary["by_image"].items():
                writer.writerow((*which, image, scores["dice"], scores["expected_dice"]))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the numbers, and the machine type."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cell(by_seed: dict[int, float | None], interval: tuple[float, float] | None = None) -> Cell:
    numbers = {seed: float("nan") if value is None else float(value) for seed, value in by_seed.items()}
    return Cell(float(np.mean(list(numbers.values()))), numbers, interval)


def _interval(results: Sequence[Result]) -> tuple[float, float] | None:
    by_image = [result.summary["by_image"] for result in results]
    means = np.array([np.mean([of[image]["dice"] for of in by_image]) for image in by_image[0]])
    interval = bootstrap_interval(means, [cluster_of(image, of.get("group")) for image, of in by_image[0].items()])
    return None if math.isnan(interval[0]) else interval
