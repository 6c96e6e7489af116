"""From pixels to x0, the clean sample that the inversion starts from.

H, W  native size        R  side of the network's square
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageError
from extractor.field_of_view import find_field_of_view
from store.geometry import Geometry, Interpolation
from store.spec import Clahe, Preprocessing
from store.views import Rendering, without_colour

MAX_ASPECT_RATIO = 4
"""Largest ratio of a photograph's sides: the square around it has as many times its pixels."""


@dataclass(frozen=True)
class NetworkInput:
    """A photograph as the network sees it.

    Attributes:
        x0: float32 (1, 3, R, R), RGB in [-1, 1].
        fov: bool (R, R), True inside the field of view.
        geometry: undoes crop and resize.
    """

    x0: torch.Tensor
    fov: NDArray[np.bool_]
    geometry: Geometry


@dataclass(frozen=True)
class Framed:
    """A photograph cropped to its field of view and resized: what all its renderings have in common.

    Attributes:
        square: uint8 (R, R, 3), RGB.
        fov: bool (R, R), True inside the field of view.
        geometry: undoes crop and resize.
    """

    square: NDArray[np.uint8]
    fov: NDArray[np.bool_]
    geometry: Geometry

    def shown(self, how: Preprocessing, rendering: Rendering | None = None) -> NetworkInput:
        """The network's input for a rendering; for the photograph as it is, if None."""
        return NetworkInput(to_network_range(shown(self.square, self.fov, how, rendering)), self.fov, self.geometry)


def preprocess(
    image: NDArray[np.uint8],
    resolution: int,
    how: Preprocessing,
    rendering: Rendering | None = None,
) -> NetworkInput:
    """Crop to the field of view, resize, render, equalise and scale to [-1, 1].

    Args:
        image: uint8 (H, W, 3), RGB.
        resolution: R.
        how: the spec's preprocessing.
        rendering: changes the resized photograph, uint8 (R, R, 3), before it is equalised. The field of view is found
            earlier, so that all renderings have the same geometry.

    Raises:
        ImageError, NoFieldOfView: as ``frame``.
    """
    return frame(image, resolution, how).shown(how, rendering)


def frame(
    image: NDArray[np.uint8], resolution: int, how: Preprocessing, fov: NDArray[np.bool_] | None = None
) -> Framed:
    """Find the field of view, crop to it and resize.

    Args:
        image: uint8 (H, W, 3), RGB.
        resolution: R.
        how: the spec's preprocessing.
        fov: the field of view, bool (H, W), if it has been found already.

    Raises:
        ImageError: the image is so narrow that a square around it would take far more memory.
        NoFieldOfView: nothing in the image is lit.
    """
    height, width = image.shape[:2]
    if how.crop == "fov" and max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"{width} x {height} pixels are no photograph of a retina; "
            f"its longer side may be {MAX_ASPECT_RATIO} times the shorter one"
        )
    fov = find_field_of_view(image) if fov is None else fov
    geometry = (
        Geometry.square_around(fov, resolution) if how.crop == "fov" else Geometry.whole(height, width, resolution)
    )
    small_fov = geometry.apply(fov, Interpolation.NEAREST).astype(np.bool_)
    return Framed(resized(image, geometry, how), small_fov, geometry)


def resized(image: NDArray[np.uint8], geometry: Geometry, how: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize, alike for all renderings; uint8 (R, R, 3)."""
    if how.name == "squeeze":
        return squeezed(image, geometry.resolution)
    return geometry.apply(image, Interpolation[how.interpolation.upper()]).astype(np.uint8)


def shown(
    square: NDArray[np.uint8], fov: NDArray[np.bool_], how: Preprocessing, rendering: Rendering | None = None
) -> NDArray[np.uint8]:
    """Render, remove colour, equalise and mask a copy of a resized photograph, uint8 (R, R, 3), as ``how`` says."""
    small = square.copy() if rendering is None else rendering(square)
    if how.name == "red-free":
        small = without_colour(small)
    if how.clahe is not None:
        small = equalise_lightness(small, how.clahe)
    if how.mask_outside:
        small[~fov] = 0
    return small


def squeezed(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Resize to uint8 (R, R, 3) with Pillow's LANCZOS, whose kernel widens with the photograph (OpenCV's does not)."""
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.LANCZOS))


def equalise_lightness(image: NDArray[np.uint8], clahe: Clahe) -> NDArray[np.uint8]:
    """Apply CLAHE to the lightness L in CIELAB; uint8 (H, W, 3) RGB in and out."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(clipLimit=clahe.clip_limit, tileGridSize=(clahe.tiles, clahe.tiles))
    lab[..., 0] = equaliser.apply(lab[..., 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8)


def to_network_range(image: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (h, w, 3) in 0..255 -> float32 (1, 3, h, w) in [-1, 1]."""
    channels_first = np.ascontiguousarray(np.moveaxis(image, -1, 0)).astype(np.float32)
    return torch.from_numpy(channels_first / np.float32(127.5) - 1)[None]


def save_side_by_side(x: torch.Tensor, y: torch.Tensor, path: Path) -> None:
    """Save two images (1, 3, h, w) in [-1, 1] side by side as one PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([to_pixels(x)[0], to_pixels(y)[0]], axis=1)).save(path, format="PNG")


def to_pixels(x: torch.Tensor) -> NDArray[np.uint8]:
    """float (b, 3, h, w) in [-1, 1], clipped -> uint8 (b, h, w, 3)."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
