"""3 x 3 convolutions with four times fewer multiplications: Winograd's F(4 x 4, 3 x 3).

n  images     h, w  size of a map     c  channels in     k  channels out
d  6 x 6 pixels of the input, overlapping by two         y  4 x 4 pixels of the output

    y = A^T [ (G g G^T) * (B^T d B) ] A        summed over c where * is        (Lavin and Gray 2016, Eq. 8)

Instead of 16 * 9 products for each pair of channels, a tile needs the 36 of "*"; they are 36 matrix
products over many tiles at once. Tiles go through all of it in chunks that stay in the second-level
cache, so that maps are read once and written once. What the network does to the map before it is
convolved (group norm and SiLU, or doubling its size) is done while it is read.

Maps are channels-last, float32 (n, h, w, c) contiguous. Sums are added up in an order that does not
depend on the number of threads.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from extractor.cpu.vectors import COLUMNS, LANES, ROWS, bits_to_float, combination, multiply
from store.threads import torch_threads

Floats = NDArray[np.float32]

_at_once = threading.Lock()  # not every threading layer of Numba may be entered by two threads
_CHUNK_FLOATS = 48_000  # of 36 transformed tiles together, a fraction of the second-level cache

# F(4, 3) for the points 0, 1, -1, 2, -2 and infinity.
_BT = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
     [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=np.float64
)  # fmt: skip
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=np.float64)
_G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip


def transform_weights(weights: Floats) -> Floats:
    """G g G^T of weights (k, c, 3, 3), in the order the products read them: (36, k / 16, c, 16).

    k must be a multiple of 16.
    """
    k, c = weights.shape[:2]
    transformed = np.einsum("iy,kcyx,jx->ijck", _G, weights.astype(np.float64), _G).reshape(36, c, k // COLUMNS, -1)
    return np.ascontiguousarray(transformed.transpose(0, 2, 1, 3), dtype=np.float32)


_transform_input, _transform_output = combination(_BT), combination(_AT)


@njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _silu(x: Any) -> Any:
    """x / (1 + exp(-x)), 2e-7 relative; 2^f by the Taylor series of degree 6, in operations that vectorise."""
    y = min(max(x * np.float32(-1.4426950408889634), np.float32(-120.0)), np.float32(120.0))
    whole = np.floor(y + np.float32(0.5))
    f = y - whole
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    power = p * bits_to_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))
    return x / (np.float32(1.0) + power)


@njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _read_row(x: Floats, i: int, row: int, doubled: bool, scale: Floats, shift: Floats, into: Floats) -> None:
    """One row of the map as the convolution sees it, into flat ((w + 2) c); zeros beyond the map.

    ``scale`` and ``shift`` are those of the channels, repeated for a row.
    """
    channels, times = x.shape[3], 2 if doubled else 1
    height, width = times * x.shape[1], times * x.shape[2]
    into[:channels] = 0
    into[(width + 1) * channels :] = 0
    if row < 0 or row >= height:
        into[:] = 0
    elif doubled:
        for column in range(x.shape[2]):
            at = (2 * column + 1) * channels
            for c in range(channels):
                into[at + c] = x[i, row // 2, column, c]
                into[at + channels + c] = x[i, row // 2, column, c]
    else:
        numbers = x[i, row].reshape(-1)
        for e in range(len(numbers)):
            into[channels + e] = _silu(numbers[e] * scale[e] + shift[e])


@njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _convolve(
    x: Floats, doubled: bool, scale: Floats, shift: Floats, u: Floats, bias: Floats, added: Floats, y: Floats
) -> None:
    """y (n, h, w, k) = conv(read(x)) + bias (n, k), plus ``added`` (n, h, w, k) unless it is empty."""
    c, (_, height, width, k) = x.shape[3], y.shape
    tile_rows, tiles, panels = height // 4, width // 4, k // COLUMNS
    chunk = max(ROWS, min(tiles, _CHUNK_FLOATS // (36 * max(c, k))) // ROWS * ROWS)
    per_task = max(1, tile_rows // 16)
    tasks = (tile_rows + per_task - 1) // per_task
    flat_u, flat_y, flat_added = u.reshape(-1), y.reshape(-1), added.reshape(-1)
    row_c, row_k, plane_c, plane_k = (width + 2) * c, width * k, chunk * c, chunk * k
    for task in prange(len(y) * tasks):
        i, first = task // tasks, task % tasks * per_task
        rows = np.zeros((6, row_c), dtype=np.float32)
        upright = np.empty(6 * (4 * chunk + 2) * c, dtype=np.float32)  # transformed along columns
        v = np.zeros(36 * plane_c, dtype=np.float32)
        m = np.empty(36 * plane_k, dtype=np.float32)
        half = np.empty(4 * 6 * k, dtype=np.float32)
        scales, shifts = _repeated(scale[i], width), _repeated(shift[i], width)
        flat_rows = rows.reshape(-1)
        for tile_row in range(first, min(first + per_task, tile_rows)):
            if tile_row > first:
                rows[:2] = rows[4:]
            for r in range(0 if tile_row == first else 2, 6):
                _read_row(x, i, 4 * tile_row - 1 + r, doubled, scales, shifts, rows[r])
            for start in range(0, tiles, chunk):
                count = min(chunk, tiles - start)
                length = (4 * count + 2) * c
                for e in range(0, length, LANES):
                    _transform_input(flat_rows, 4 * start * c + e, row_c, upright, e, length)
                for r in range(6):
                    for t in range(count):
                        for e in range(0, c, LANES):
                            _transform_input(
                                upright, r * length + 4 * t * c + e, c, v, 6 * r * plane_c + t * c + e, plane_c
                            )
                for p in range(36):
                    for panel in range(panels):
                        at_u = (p * panels + panel) * c * COLUMNS
                        for t in range(0, count, ROWS):
                            multiply(
                                v, p * plane_c + t * c, flat_u, at_u, m, p * plane_k + t * k + panel * COLUMNS, c, k
                            )
                for t in range(count):  # the 8th of the 36 reaches all 16 pixels with the factor 1
                    for e in range(k):
                        m[7 * plane_k + t * k + e] += bias[i, e]
                for t in range(count):
                    for r in range(6):
                        for e in range(0, k, LANES):
                            _transform_output(m, r * plane_k + t * k + e, 6 * plane_k, half, r * k + e, 6 * k)
                    at_y = ((i * height + 4 * tile_row) * width + 4 * (start + t)) * k
                    for r in range(4):
                        for e in range(0, k, LANES):
                            _transform_output(half, r * 6 * k + e, k, flat_y, at_y + r * row_k + e, k)
            if len(flat_added):
                at_y = (i * height + 4 * tile_row) * row_k
                for e in range(at_y, at_y + 4 * row_k):
                    flat_y[e] += flat_added[e]


@njit(inline="always")  # type: ignore[untyped-decorator]
def _repeated(numbers: Floats, times: int) -> Floats:
    repeated = np.empty((times, len(numbers)), dtype=np.float32)
    repeated[:] = numbers
    return repeated.reshape(-1)


def fits(channels: int, outputs: int, height: int, width: int) -> bool:
    """Whether a convolution of maps of this size can be done here."""
    return channels % LANES == 0 and outputs % COLUMNS == 0 and height % 4 == 0 and width % 4 == 0


def convolve(
    x: Floats,
    weights: Floats,
    bias: Floats,
    *,
    normalising: tuple[Floats, Floats] | None = None,
    added: Floats | None = None,
) -> Floats:
    """A 3 x 3 convolution with a margin of zeros, stride 1.

    Args:
        x: (n, h, w, c).
        weights: of ``transform_weights``.
        bias: (n, k).
        normalising: scale and shift (n, c); SiLU(scale x + shift) is convolved. Without them it is x
            with every pixel doubled along both axes.
        added: (n, h, w, k) or None; added to the result.

    Returns:
        (n, h, w, k), or (n, 2h, 2w, k) of doubled pixels.
    """
    images, height, width, channels = x.shape
    doubled = normalising is None
    scale, shift = normalising or (np.empty((images, channels), np.float32),) * 2
    times = 2 if doubled else 1
    y = np.empty((images, times * height, times * width, bias.shape[1]), dtype=np.float32)
    nothing = np.empty((0, 0, 0, 0), dtype=np.float32)
    with _at_once, torch_threads():
        _convolve(x, doubled, scale, shift, weights, bias, nothing if added is None else added, y)
    return y


@njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _channel_moments(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mean square of each channel about its first pixel, of (n, h, w, c): two float64 (n, c)."""
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


def channel_moments(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each channel of (n, h, w, c): two float64 (n, c)."""
    with _at_once, torch_threads():
        mean, mean_square = _channel_moments(x)
    return mean + x[:, 0, 0], mean_square - mean**2
