"""What a backbone is shown of a photograph, made from its pixels and the place of its field of view.

Here and not beside the backbones, since networks on photographs, which features are compared with, are shown the same.

H, W  native size        R  side of the network's square
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from store.geometry import Geometry, Interpolation
from store.spec import Clahe, Preprocessing
from store.views import Rendering, without_colour


def prepare(
    image: NDArray[np.uint8],
    geometry: Geometry,
    fov: NDArray[np.bool_],
    how: Preprocessing,
    rendering: Rendering | None = None,
) -> NDArray[np.uint8]:
    """Crop, resize, render, take colour, equalise, mask; uint8 (R, R, 3).

    Args:
        image: uint8 (H, W, 3), RGB.
        geometry: of crop and resize; ``squeeze`` takes its side alone.
        fov: bool (R, R).
        how: the spec's preprocessing.
        rendering: changes the resized photograph, uint8 (R, R, 3), before it is equalised.
    """
    return shown(resized(image, geometry, how), fov, how, rendering)


def resized(image: NDArray[np.uint8], geometry: Geometry, how: Preprocessing) -> NDArray[np.uint8]:
    """The first part: crop and resize, the same of all renderings; uint8 (R, R, 3)."""
    if how.name == "squeeze":
        return squeezed(image, geometry.resolution)
    return geometry.apply(image, Interpolation[how.interpolation.upper()]).astype(np.uint8)


def shown(
    square: NDArray[np.uint8], fov: NDArray[np.bool_], how: Preprocessing, rendering: Rendering | None = None
) -> NDArray[np.uint8]:
    """The second part, of a resized photograph, uint8 (R, R, 3), which is left as it is."""
    small = square.copy() if rendering is None else rendering(square)
    if how.name == "red-free":
        small = without_colour(small)
    if how.clahe is not None:
        small = equalise_lightness(small, how.clahe)
    if how.mask_outside:
        small[~fov] = 0
    return small


def in_network_range(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (..., h, w, 3) in 0..255 -> float32 (..., 3, h, w) in [-1, 1], channels first."""
    return np.ascontiguousarray(np.moveaxis(image, -1, -3)).astype(np.float32) / np.float32(127.5) - 1


def squeezed(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Pillow's LANCZOS, whose kernel grows with the photograph (OpenCV's does not); uint8 (R, R, 3)."""
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.LANCZOS))


def equalise_lightness(image: NDArray[np.uint8], clahe: Clahe) -> NDArray[np.uint8]:
    """CLAHE of L in CIELAB; uint8 (H, W, 3) RGB in and out."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(clipLimit=clahe.clip_limit, tileGridSize=(clahe.tiles, clahe.tiles))
    lab[..., 0] = equaliser.apply(lab[..., 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8)
