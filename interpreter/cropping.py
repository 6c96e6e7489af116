"""Random windows of training images, cut from the same place of every map and of the ground truth.

b  images    k  stored planes    h, w  size of a map    R  network's square
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpreter.errors import ConfigurationError
from store.encoded import Encoded

Corner = tuple[int, int]
"""Top and left edge of a window, in pixels of the network's square."""


def require_window(side: int, stride: int, resolution: int) -> None:
    """Raise ConfigurationError unless windows of that side fit the square and hold whole values of every map.

    Args:
        side: side of a window, in pixels of the network's square.
        stride: pixels of the square, along a side, that the network cannot read apart (``Head.stride``).
        resolution: side of the square, R.
    """
    if side > resolution or side % stride:
        raise ConfigurationError(
            f"a crop of {side} pixels: expected a multiple of {stride}, {resolution} at most, since the coarsest map "
            f"has one value for every {stride} pixels"
        )


def draw_corner(inside: NDArray[np.bool_], side: int, stride: int, random: np.random.Generator) -> Corner:
    """Draw a window centred on a random pixel of ``inside``, moved into the square and onto multiples of ``stride``.

    Args:
        inside: (R, R), the pixels that a window may be centred on; if none is set, it is centred on the square.
    """
    candidates = np.flatnonzero(inside)
    if len(candidates):
        centre = np.unravel_index(candidates[random.integers(len(candidates))], inside.shape)
    else:
        centre = tuple(length // 2 for length in inside.shape)
    largest = len(inside) - side
    top, left = (min(max(int(c) - side // 2, 0), largest) // stride * stride for c in centre)
    return top, left


def draw_class(members: NDArray[np.bool_], inside: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    """Draw one of the classes present and return its pixels, (R, R); without any class, all pixels that count.

    As in nnU-Net (Isensee et al. 2021): windows drawn uniformly hardly ever show a class of few pixels.

    Args:
        members: (n, R, R), the pixels of each class but the background.
        inside: (R, R), the pixels that count; others of a class are left out.
    """
    counting = [one for one in members & inside if one.any()]
    return counting[random.integers(len(counting))] if counting else inside


def crop_maps(maps: Mapping[str, Encoded], corners: Sequence[Corner], side: int, resolution: int) -> dict[str, Encoded]:
    """Cut windows out of maps {block: Encoded (b, ..., k, h, w)}, at one corner for each image."""
    return {name: _crop(stored, corners, side, resolution) for name, stored in maps.items()}


def crop_plane(plane: NDArray[Any], corner: Corner, side: int) -> NDArray[Any]:
    """Cut the window out of a plane (R, R)."""
    top, left = corner
    return plane[top : top + side, left : left + side]


def _crop(stored: Encoded, corners: Sequence[Corner], side: int, resolution: int) -> Encoded:
    h, w = stored.values.shape[-2:]
    high, wide = side * h // resolution, side * w // resolution
    windows = [
        image[..., top * h // resolution :, left * w // resolution :][..., :high, :wide]
        for image, (top, left) in zip(stored.values, corners, strict=True)
    ]
    return Encoded(np.stack(windows), stored.scale, stored.offset)
