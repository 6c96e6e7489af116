"""Photometric changes: how another camera might have rendered the same retina.

All changes are drawn from a generator, so a seed determines a rendering. Black stays black: a change of
brightness does not light what lies outside the field of view.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from store.views import PHOTOMETRIC


def camera_rendering(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Render a photograph as another camera might have: uneven light, another colour balance, JPEG.

    Args:
        image: uint8 (h, w, 3), RGB.
        random: the generator that the rendering is drawn from.

    Returns:
        uint8 (h, w, 3).
    """
    lit = np.clip(image * _illumination(image.shape[:2], random)[..., None], 0, 255).astype(np.uint8)
    changed = photometric_change(lit, random)
    quality = int(random.integers(60, 96))
    ok, encoded = cv2.imencode(".jpg", cv2.cvtColor(changed, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    decoded = cv2.cvtColor(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return np.where(image.max(axis=2, keepdims=True) < 4, 0, decoded).astype(np.uint8)


def _illumination(size: tuple[int, int], random: np.random.Generator) -> NDArray[np.float32]:
    """A smooth field of factors around 1, (h, w): brighter on one side, and darker towards the rim."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    slope_y, slope_x = random.normal(0, 0.12, size=2)
    vignette = random.uniform(0, 0.3)
    return np.asarray(1 + slope_y * y + slope_x * x - vignette * (x**2 + y**2) / 2, dtype=np.float32)


def photometric_change(
    image: NDArray[np.uint8], random: np.random.Generator, strength: float = 1.0
) -> NDArray[np.uint8]:
    """Change gamma, the gain of each colour and the contrast and, now and then, blur.

    Args:
        image: uint8 (h, w, 3), RGB.
        random: the generator that the change is drawn from.
        strength: 0 leaves the image as it is, 1 spans the differences between fundus cameras.

    Returns:
        uint8 (h, w, 3).
    """
    pixels = np.asarray(image, dtype=np.float32) / 255
    black = image.max(axis=2) < 4
    spread = PHOTOMETRIC
    gamma = np.exp(random.normal(0, spread.gamma * strength))
    gain = np.exp(random.normal(0, spread.gain * strength) + random.normal(0, spread.colour * strength, size=3))
    contrast = np.exp(random.normal(0, spread.contrast * strength))
    blur = random.uniform(0.3, 1.0) if random.random() < spread.blurred * min(strength, 1) else 0.0

    pixels = pixels ** np.float32(gamma) * gain.astype(np.float32)
    mean = pixels[~black].mean(axis=0) if not black.all() else pixels.mean(axis=(0, 1))
    pixels = (pixels - mean) * np.float32(contrast) + mean
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    pixels[black] = 0
    return np.asarray((np.clip(pixels, 0, 1) * 255).round(), dtype=np.uint8)
