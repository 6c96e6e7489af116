"""Draws tables of numbers between 0 and 1 as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = (92, 40)
HEAD = 72
MARGIN = 16
# Five colours of viridis (matplotlib, CC0): lightness grows with the value, which needs no colour vision.
_SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)


@dataclass(frozen=True)
class Panel:
    """One table of a heat map.

    Attributes:
        title: drawn above the table.
        rows, columns: their names, in the order in which they are drawn.
        values: {(row, column): value between 0 and 1}.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]


def draw_heat_map(panels: Sequence[Panel]) -> NDArray[np.uint8]:
    """Draw tables side by side, with one colour scale for all, from the smallest value to the largest.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    numbers = [value for panel in panels for value in panel.values.values()]
    smallest, largest = min(numbers), max(numbers)
    widths = [MARGIN + HEAD + CELL[0] * len(panel.columns) for panel in panels]
    height = 2 * MARGIN + 2 * CELL[1] + CELL[1] * max(len(panel.rows) for panel in panels)
    picture = Image.new("RGB", (sum(widths) + MARGIN, height), "white")
    for panel, left in zip(panels, np.cumsum([0, *widths[:-1]]), strict=True):
        _draw(ImageDraw.Draw(picture), panel, int(left) + MARGIN, smallest, (largest - smallest) or 1.0)
    return np.asarray(picture, dtype=np.uint8)


def _draw(pen: ImageDraw.ImageDraw, panel: Panel, left: int, smallest: float, span: float) -> None:
    font = ImageFont.load_default(15)
    width, height = CELL
    pen.text((left, MARGIN), panel.title, "black", font)
    for j, column in enumerate(panel.columns):
        pen.text((left + HEAD + (j + 0.5) * width, MARGIN + 1.5 * height), column, "black", font, anchor="mm")
    for i, row in enumerate(panel.rows):
        top = MARGIN + (i + 2) * height
        pen.text((left, top + height / 2), row, "black", font, anchor="lm")
        for j, column in enumerate(panel.columns):
            share = (panel.values[row, column] - smallest) / span
            x = left + HEAD + j * width
            pen.rectangle((x, top, x + width - 2, top + height - 2), fill=_colour(share))
            number = f"{100 * panel.values[row, column]:.1f}"
            pen.text((x + width / 2, top + height / 2), number, "black" if share > 0.6 else "white", font, anchor="mm")


def _colour(share: float) -> tuple[int, int, int]:
    """The RGB colour of a share 0..1 of the scale; 0 is dark, 1 is light."""
    at = np.linspace(0, 1, len(_SCALE))
    red, green, blue = (round(float(np.interp(share, at, _SCALE[:, c]))) for c in range(3))
    return red, green, blue
