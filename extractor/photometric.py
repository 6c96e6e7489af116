"""Photometric changes: what another camera would have made of the same retina.

All changes are drawn from a generator, so a seed names a rendering. Black stays black: what lies
outside the field of view is not lit by a change of brightness.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def photometric_change(
    image: NDArray[np.uint8], random: np.random.Generator, strength: float = 1.0
) -> NDArray[np.uint8]:
    """Gamma, gain for each colour, contrast and, now and then, blur.

    Args:
        image: uint8 (h, w, 3), RGB.
        random: draws the change.
        strength: 0 leaves the image as it is, 1 spans the differences between fundus cameras.

    Returns:
        uint8 (h, w, 3).
    """
    pixels = np.asarray(image, dtype=np.float32) / 255
    black = image.max(axis=2) < 4
    gamma = np.exp(random.normal(0, 0.25 * strength))
    gain = np.exp(random.normal(0, 0.12 * strength) + random.normal(0, 0.12 * strength, size=3))
    contrast = np.exp(random.normal(0, 0.15 * strength))
    blur = random.uniform(0.3, 1.0) if random.random() < 0.25 * min(strength, 1) else 0.0

    pixels = pixels ** np.float32(gamma) * gain.astype(np.float32)
    mean = pixels[~black].mean(axis=0) if not black.all() else pixels.mean(axis=(0, 1))
    pixels = (pixels - mean) * np.float32(contrast) + mean
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    pixels[black] = 0
    return np.asarray((np.clip(pixels, 0, 1) * 255).round(), dtype=np.uint8)
