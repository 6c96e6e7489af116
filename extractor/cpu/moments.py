"""Mean and variance of each channel of a map, from which group norms are computed.

n  images     h, w  size of a map     c, k  channels

The order of summation does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import prange

from store.kernels import Doubles, Floats, kernel
from store.threads import torch_threads


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel of a map: float64 (n, c)."""

    mean: Doubles
    variance: Doubles

    def with_channels(self, other: Moments) -> Moments:
        """The moments of both maps' channels, concatenated."""
        return Moments(np.hstack([self.mean, other.mean]), np.hstack([self.variance, other.variance]))


def pooled(moments: Doubles) -> Moments:
    """Combine the moments (n, tasks, 3, k) of a map's parts: number of pixels, mean, sum of squared deviations."""
    number, mean, squares = moments[:, :, 0], moments[:, :, 1], moments[:, :, 2]
    total = number.sum(axis=1)
    middle = (number * mean).sum(axis=1) / total
    return Moments(middle, (squares + number * (mean - middle[:, None]) ** 2).sum(axis=1) / total)


@kernel(parallel=True, fastmath=True)
def _channel_moments(x: Floats) -> tuple[Doubles, Doubles]:
    """Mean and mean square of each channel of (n, h, w, c) relative to its first pixel: two float64 (n, c)."""
    images, height, width, channels = x.shape
    blocks = min(16, height)
    sums = np.zeros((images, blocks, 2, channels))
    for task in prange(images * blocks):
        i, block = task // blocks, task % blocks
        of_row = np.empty((2, channels), dtype=np.float32)
        for row in range(block * height // blocks, (block + 1) * height // blocks):
            of_row[:] = 0
            for column in range(width):
                for c in range(channels):
                    away = x[i, row, column, c] - x[i, 0, 0, c]
                    of_row[0, c] += away
                    of_row[1, c] += away * away
            for c in range(channels):
                sums[i, block, 0, c] += of_row[0, c]
                sums[i, block, 1, c] += of_row[1, c]
    total = np.zeros((2, images, channels))
    for i in range(images):
        for block in range(blocks):
            total[:, i] += sums[i, block]
    total /= height * width
    return total[0], total[1]


def channel_moments(x: Floats) -> Moments:
    """Compute the moments of a map (n, h, w, c)."""
    with torch_threads():
        mean, mean_square = _channel_moments(x)
    return Moments(mean + x[:, 0, 0], mean_square - mean**2)
