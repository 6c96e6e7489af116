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

NARROWEST = 4
"""A photograph's longer side over its shorter one, at most: the square around it is so many times as large."""


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
        """What the network sees of a rendering."""
        return NetworkInput(to_network_range(shown(self.square, self.fov, how, rendering)), self.fov, self.geometry)


def preprocess(
    image: NDArray[np.uint8],
    resolution: int,
    how: Preprocessing,
    name: str = "image",
    rendering: Rendering | None = None,
) -> NetworkInput:
    """Crop to the field of view, resize, render, equalise, scale.

    Args:
        image: uint8 (H, W, 3), RGB.
        resolution: R.
        how: the spec's preprocessing.
        name: for messages.
        rendering: changes the resized photograph, uint8 (R, R, 3), before it is equalised; where the
            field of view lies is decided before, so all renderings have one geometry.

    Raises:
        ImageError, NoFieldOfView: as ``frame``.
    """
    return frame(image, resolution, how, name).shown(how, rendering)


def frame(image: NDArray[np.uint8], resolution: int, how: Preprocessing, name: str = "image") -> Framed:
    """Find the field of view, crop to it and resize.

    Args:
        image: uint8 (H, W, 3), RGB.
        resolution: R.
        how: the spec's preprocessing.
        name: for messages.

    Raises:
        ImageError: so narrow that a square around it would need far more memory than the image.
        NoFieldOfView: nothing lit in the image.
    """
    height, width = image.shape[:2]
    if how.crop == "fov" and max(height, width) > NARROWEST * min(height, width):
        raise ImageError(
            f"{name}: {width} x {height} pixels are no photograph of a retina; "
            f"its longer side may be {NARROWEST} times the shorter one"
        )
    fov = find_field_of_view(image, name)
    geometry = (
        Geometry.square_around(fov, resolution) if how.crop == "fov" else Geometry.whole(height, width, resolution)
    )
    small_fov = geometry.apply(fov, Interpolation.NEAREST).astype(np.bool_)
    return Framed(resized(image, geometry, how), small_fov, geometry)


def resized(image: NDArray[np.uint8], geometry: Geometry, how: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize, the same of all renderings; uint8 (R, R, 3)."""
    if how.name == "squeeze":
        return squeezed(image, geometry.resolution)
    return geometry.apply(image, Interpolation[how.interpolation.upper()]).astype(np.uint8)


def shown(
    square: NDArray[np.uint8], fov: NDArray[np.bool_], how: Preprocessing, rendering: Rendering | None = None
) -> NDArray[np.uint8]:
    """Render, take colour, equalise, mask a resized photograph, uint8 (R, R, 3), which is left as it is."""
    small = square.copy() if rendering is None else rendering(square)
    if how.name == "red-free":
        small = without_colour(small)
    if how.clahe is not None:
        small = equalise_lightness(small, how.clahe)
    if how.mask_outside:
        small[~fov] = 0
    return small


def squeezed(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Pillow's LANCZOS, whose kernel grows with the photograph (OpenCV's does not); uint8 (R, R, 3)."""
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.LANCZOS))


def equalise_lightness(image: NDArray[np.uint8], clahe: Clahe) -> NDArray[np.uint8]:
    """CLAHE of L in CIELAB; uint8 (H, W, 3) RGB in and out."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(clipLimit=clahe.clip_limit, tileGridSize=(clahe.tiles, clahe.tiles))
    lab[..., 0] = equaliser.apply(lab[..., 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8)


def to_network_range(image: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (h, w, 3) in 0..255 -> float32 (1, 3, h, w) in [-1, 1]."""
    channels_first = np.ascontiguousarray(np.moveaxis(image, -1, 0)).astype(np.float32)
    return torch.from_numpy(channels_first / np.float32(127.5) - 1)[None]


def save_side_by_side(x: torch.Tensor, y: torch.Tensor, path: Path) -> None:
    """Two images (1, 3, h, w) in [-1, 1] as one picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([to_pixels(x)[0], to_pixels(y)[0]], axis=1)).save(path, format="PNG")


def to_pixels(x: torch.Tensor) -> NDArray[np.uint8]:
    """float (b, 3, h, w) in [-1, 1], clipped -> uint8 (b, h, w, 3)."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
