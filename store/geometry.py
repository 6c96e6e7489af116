"""The mapping of a photograph's pixels to the network's square, and back.

H, W  native size of the photograph
R     side of the square that the network sees
box   the part of the photograph that becomes that square: (top, left, height, width) in native
      pixels; it may reach beyond the photograph, where it is black

Pixel centres are at half-integers on both sides (the convention of OpenCV and of
``torch.nn.functional.interpolate(align_corners=False)``), so resizing shifts no map.
"""

from __future__ import annotations

from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Interpolation(IntEnum):
    """How values between pixels are interpolated."""

    NEAREST = cv2.INTER_NEAREST_EXACT
    LINEAR = cv2.INTER_LINEAR
    AREA = cv2.INTER_AREA
    LANCZOS = cv2.INTER_LANCZOS4


class Geometry(BaseModel):
    """The crop and resize between a native image (H, W) and the network's square (R, R).

    ``restore(apply(image))`` returns every value to the pixel it came from; pixels outside the box
    are filled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(gt=0, description="native height H")
    width: int = Field(gt=0, description="native width W")
    top: int
    left: int
    box_height: int = Field(gt=0)
    box_width: int = Field(gt=0)
    resolution: int = Field(gt=0, description="side R of the network's square")

    @model_validator(mode="after")
    def _box_meets_the_image(self) -> Geometry:
        rows = min(self.top + self.box_height, self.height) - max(self.top, 0)
        columns = min(self.left + self.box_width, self.width) - max(self.left, 0)
        if rows <= 0 or columns <= 0:
            raise ValueError(
                f"the crop box (top {self.top}, left {self.left}, {self.box_height} x {self.box_width}) "
                f"lies outside the image of {self.height} x {self.width} pixels"
            )
        return self

    @classmethod
    def whole(cls, height: int, width: int, resolution: int) -> Geometry:
        """The whole photograph resized to the square, whatever its aspect ratio."""
        return cls(height=height, width=width, top=0, left=0, box_height=height, box_width=width, resolution=resolution)

    @classmethod
    def square_around(cls, region: NDArray[np.bool_], resolution: int) -> Geometry:
        """The smallest square around the True pixels of ``region`` (H, W), centred on them."""
        rows = np.flatnonzero(region.any(axis=1))
        columns = np.flatnonzero(region.any(axis=0))
        if rows.size == 0:
            raise ValueError("expected a region with at least one pixel, got an empty one")
        extent_h, extent_w = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        side = max(extent_h, extent_w)
        height, width = region.shape
        return cls(
            height=height,
            width=width,
            top=int(rows[0]) - (side - extent_h) // 2,
            left=int(columns[0]) - (side - extent_w) // 2,
            box_height=side,
            box_width=side,
            resolution=resolution,
        )

    def with_resolution(self, resolution: int) -> Geometry:
        """The same crop, resized to a square of another side."""
        return self.model_copy(update={"resolution": resolution})

    @property
    def scale(self) -> tuple[float, float]:
        """Native pixels per pixel of the network's square, (vertical, horizontal)."""
        return self.box_height / self.resolution, self.box_width / self.resolution

    def crop(self, native: NDArray[np.generic], fill: float = 0) -> NDArray[np.generic]:
        """Crop to the box: (H, W[, k]) -> (box_height, box_width[, k]), same dtype; ``fill`` outside the photograph."""
        self._expect(native, (self.height, self.width), "native")
        box = np.full((self.box_height, self.box_width, *native.shape[2:]), fill, dtype=native.dtype)
        inside, source = self._overlap()
        box[inside] = native[source]
        return box

    def apply(
        self, native: NDArray[np.generic], interpolation: Interpolation = Interpolation.AREA, fill: float = 0
    ) -> NDArray[np.generic]:
        """Crop and resize: (H, W[, k]) -> (R, R[, k]), same dtype; ``fill`` outside the photograph."""
        return _resize(self.crop(native, fill), self.resolution, self.resolution, interpolation)

    def restore(
        self, square: NDArray[np.generic], interpolation: Interpolation = Interpolation.NEAREST, fill: float = 0
    ) -> NDArray[np.generic]:
        """Undo ``apply``: (R, R[, k]) -> (H, W[, k]), same dtype; ``fill`` outside the crop box."""
        self._expect(square, (self.resolution, self.resolution), "network")
        box = _resize(square, self.box_height, self.box_width, interpolation)
        native = np.full((self.height, self.width, *square.shape[2:]), fill, dtype=square.dtype)
        inside, source = self._overlap()
        native[source] = box[inside]
        return native

    def _overlap(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the photograph inside the box, as slices of the box and of the photograph."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.box_height, self.height)
        right = min(self.left + self.box_width, self.width)
        inside = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return inside, (slice(top, bottom), slice(left, right))

    @staticmethod
    def _expect(array: NDArray[np.generic], size: tuple[int, int], what: str) -> None:
        if array.shape[:2] != size:
            raise ValueError(f"expected a {what} array of {size[0]} x {size[1]} pixels, got shape {array.shape}")


def _resize(array: NDArray[np.generic], height: int, width: int, interpolation: Interpolation) -> NDArray[np.generic]:
    if array.shape[:2] == (height, width):
        return array.copy()
    as_stored = array.dtype
    if as_stored == np.bool_:
        array = array.astype(np.uint8)
    if interpolation == Interpolation.AREA and (height > array.shape[0] or width > array.shape[1]):
        interpolation = Interpolation.LINEAR  # INTER_AREA falls back to nearest neighbour when enlarging
    resized = cv2.resize(np.ascontiguousarray(array), (width, height), interpolation=int(interpolation))
    if array.ndim == 3 and resized.ndim == 2:
        resized = resized[..., None]  # OpenCV drops a channel axis of length one
    return resized.astype(as_stored) if as_stored == np.bool_ else resized
