"""Drawn photographs with vessels, for benchmarks and tests without real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_photograph(side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a lit disc with dark vessels: uint8 (side, side, 3), and the mask of the vessels, bool (side, side)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    disc = np.hypot(x, y) < 0.46
    image = np.zeros((side, side, 3))
    image[disc] = np.array([180, 90, 40]) + random.normal(0, 5, (int(disc.sum()), 3))
    vessels = np.zeros_like(disc)
    for _ in range(6):
        slope, offset, phase = random.uniform(-1, 1), random.uniform(-0.3, 0.3), random.uniform(0, 6)
        vessels |= np.abs(y - slope * x - offset - 0.04 * np.sin(12 * x + phase)) < 0.012
    vessels &= disc
    image[vessels] *= 0.6
    return image.clip(0, 255).astype(np.uint8), vessels


def draw_data(folder: Path, count: int, side: int = 160) -> Path:
    """Draw folders stare, hrf and chase_db1 of ``count`` photographs each, in the layout of the adapter ``folder``."""
    for s, name in enumerate(("stare", "hrf", "chase_db1")):
        for part in ("images", "masks/vessel"):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, vessels = draw_photograph(side, 100 * s + i)
            Image.fromarray(image).save(folder / name / "images" / f"eye{i}.png")
            Image.fromarray(vessels).save(folder / name / "masks" / "vessel" / f"eye{i}.png")
    return folder
