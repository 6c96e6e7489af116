"""3 x 3 convolutions with four times fewer multiplications: Winograd's F(4 x 4, 3 x 3).

n  images     h, w  size of a map     c  channels in     k  channels out
d  6 x 6 pixels of the input, overlapping by two         y  4 x 4 pixels of the output

    y = A^T [ (G g G^T) * (B^T d B) ] A        * is elementwise, summed over c (Lavin and Gray 2016, Eq. 8)

Instead of 16 * 9 products for each pair of channels, a tile needs the 36 of "*"; over many tiles they are
36 matrix products. If each pixel of the input is doubled along both axes (nearest upsampling), d has 4 x 4
different pixels, one of the six points of evaluation gives zero, and 25 products are left.

A task processes a strip of tiles, as wide as fits in the second-level cache, down a part of the map's height.
What the network does to a map before it is convolved (concatenation, group norm and SiLU) is done while the strip
is read; what it does afterwards (bias, the residual with its 1 x 1 convolution, the moments that the next norm
needs) while it is written.

Maps are channels-last, float32 (n, h, w, c) contiguous. The order of summation does not depend on the number of
threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange

from extractor.cpu.kernels import AT, AT_DOUBLED, BT, BT_DOUBLED, DOUBLING, Kernel
from extractor.cpu.moments import Moments, pooled
from extractor.cpu.vectors import (
    COLUMNS,
    FEW_ROWS,
    ROWS,
    activate,
    add_bias_and_sum,
    combination,
    fetch_add,
    multiply,
    multiply_onto,
)
from store.kernels import Doubles, Floats, inlined, kernel
from store.threads import torch_threads

_STRIP_FLOATS = 48_000  # floats in a strip's transformed tiles: a fraction of the second-level cache
_TASKS = 16  # least number of tasks per image, if it has as many rows of tiles


_read, _read_doubled = combination(BT), combination(BT_DOUBLED @ DOUBLING)
_write, _write_doubled = combination(AT), combination(AT_DOUBLED)


NOTHING: Floats = np.empty((0, 0, 0, 0), dtype=np.float32)
"""Stands for an absent map."""
_NO_CHANNELS: Floats = np.empty((0, 0), dtype=np.float32)


class Residual(NamedTuple):
    """A residual that is added to a convolution's result.

    Attributes:
        x: float32 (n, h, w, k); with a projection (n, h, w, c), or the first of the c channels.
        skip: float32 (n, h, w, ...), the rest of the c channels.
        projection: weights of a 1 x 1 convolution of both, as ``transform_projection`` returns them.
    """

    x: Floats
    skip: Floats = NOTHING
    projection: Floats = NOTHING


def convolve(
    x: Floats,
    kernel: Kernel,
    bias: Floats,
    *,
    skip: Floats = NOTHING,
    normalising: tuple[Floats, Floats] | None = None,
    residual: Residual | None = None,
) -> tuple[Floats, Moments]:
    """Convolve maps with a 3 x 3 kernel, stride 1 and zero padding of one pixel.

    Args:
        x: (n, h, w, c), or the first of the c channels; h, w multiples of 4, channels of 8.
        kernel: as ``transform_kernel`` returns it; if it is for doubled maps, every pixel is doubled first.
        bias: (n, k).
        skip: (n, h, w, ...), the rest of the c channels.
        normalising: scale and shift, each (n, c); SiLU(scale x + shift) is convolved instead of x. Required with
            ``skip``.
        residual: added to the result; k must then be a multiple of 16.

    Raises:
        ValueError: the maps' channels are not those of the kernel.

    Returns:
        The result, (n, h, w, k), or (n, 2h, 2w, k) with doubled pixels, contiguous if k is a multiple of 16; and its
        moments.
    """
    images, height, width, channels = x.shape
    if channels + skip.shape[3] != kernel.inputs:
        raise ValueError(f"expected maps of {kernel.inputs} channels, got {channels + skip.shape[3]}")
    times, k = 2 if kernel.doubled else 1, kernel.weights.shape[1] * COLUMNS
    y = np.empty((images, times * height, times * width, k), dtype=np.float32)
    added = residual or Residual(NOTHING)
    tile_rows, tiles = y.shape[1] // 4, y.shape[2] // 4
    # Strips of equal width, cut in height into enough parts to keep several threads busy.
    strips = -(-tiles // max(ROWS, _STRIP_FLOATS // (36 * max(channels + skip.shape[3], k))))
    width_of_strip = -(-tiles // (strips * ROWS)) * ROWS
    strips = -(-tiles // width_of_strip)
    parts = min(tile_rows, -(-_TASKS // strips))
    moments = np.empty((images, strips * parts, 3, k))
    with torch_threads():
        _convolve(
            (x, skip),
            normalising or (_NO_CHANNELS, _NO_CHANNELS),
            kernel.weights,
            np.pad(bias, ((0, 0), (0, k - kernel.outputs))),
            (added.x, added.skip),
            added.projection,
            y,
            width_of_strip,
            moments,
            get_num_threads(),
        )
    return y[..., : kernel.outputs], pooled(moments[..., : kernel.outputs])


@kernel(parallel=True)
def _convolve(
    maps: tuple[Floats, Floats],
    normalising: tuple[Floats, Floats],
    u: Floats,
    bias: Floats,
    added: tuple[Floats, Floats],
    projection: Floats,
    y: Floats,
    strip_tiles: int,
    moments: Doubles,
    workers: int,
) -> None:
    """y = convolution + bias + residual; ``moments`` (n, tasks, 3, k) as ``pooled`` takes them.

    A thread that is done takes the next task: a core shared with other processes does fewer, and none waits for it.
    """
    tasks, next_task = moments.shape[0] * moments.shape[1], np.zeros(1, np.int64)
    for _ in prange(workers):
        task = fetch_add(next_task)
        while task < tasks:
            _convolve_part(maps, normalising, u, bias, added, projection, y, strip_tiles, moments, task)
            task = fetch_add(next_task)


@kernel()
def _convolve_part(
    maps: tuple[Floats, Floats],
    normalising: tuple[Floats, Floats],
    u: Floats,
    bias: Floats,
    added: tuple[Floats, Floats],
    projection: Floats,
    y: Floats,
    strip_tiles: int,
    moments: Doubles,
    task: int,
) -> None:
    """Convolve one part of one strip of an image."""
    c, (_, height, width, k) = maps[0].shape[3] + maps[1].shape[3], y.shape
    doubled = height > maps[0].shape[1]
    p, step = (5, 2) if doubled else (6, 4)  # points of evaluation, and pixels of the input from tile to tile
    tile_rows, tiles = height // 4, width // 4
    strips = (tiles + strip_tiles - 1) // strip_tiles
    parts = moments.shape[1] // strips
    line = (step * strip_tiles + 2) * c  # floats of a row
    # Planes are an odd number of cache lines apart, as otherwise they would all map to the same sets of the cache.
    plane_c, plane_k = (strip_tiles * c + 15) // 32 * 32 + 16, (strip_tiles * k + 15) // 32 * 32 + 16
    flat_u, flat_y, flat_bias = u.reshape(-1), y.reshape(-1), bias.reshape(-1)
    i, strip, part = task // (strips * parts), task // parts % strips, task % parts
    start = strip * strip_tiles
    count = min(strip_tiles, tiles - start)
    rows = np.empty((step + 2) * line, dtype=np.float32)
    upright = np.empty(p * line, dtype=np.float32)  # transformed along columns
    v = np.zeros(p * p * plane_c, dtype=np.float32)
    m = np.empty(p * p * plane_k, dtype=np.float32)
    half = np.empty(4 * p * k, dtype=np.float32)
    reference, sums, total = np.zeros(k, np.float32), np.zeros(2 * k, np.float32), np.zeros((2, k))
    begin, end = part * tile_rows // parts, (part + 1) * tile_rows // parts
    for tile_row in range(begin, end):
        first_row = 0 if tile_row == begin else 2  # the last two rows of the tiles above are the first two of these
        if first_row:
            rows[: 2 * line] = rows[step * line :]
        for r in range(first_row, step + 2):
            row, column = step * tile_row - 1 + r, step * start - 1
            _read_row(maps, normalising, i, row, column, step * count + 2, rows, r * line)
        _read_tiles(rows, line, upright, v, plane_c, count, c, doubled)
        _multiply_points(v, plane_c, flat_u, m, plane_k, p * p, count, c, k)
        pixel = (i * height + 4 * tile_row) * width + 4 * start  # the strip's first
        for t in range(count):
            _write_tile(m, t * k, plane_k, half, flat_y, (pixel + 4 * t) * k, width * k, k, doubled)
        if tile_row == begin:
            reference[:] = flat_y[pixel * k : (pixel + 1) * k]
        for r in range(4):
            first = pixel + r * width
            _add(added, projection, first, 4 * count, flat_y, k)
            add_bias_and_sum(flat_y, first * k, k, 4 * count, flat_bias, i * k, reference, sums)
            for e in range(k):
                total[0, e] += sums[e]
                total[1, e] += sums[k + e]
    number = 16.0 * count * (end - begin)
    for e in range(k):
        moments[i, strip * parts + part, 0, e] = number
        moments[i, strip * parts + part, 1, e] = reference[e] + total[0, e] / number
        moments[i, strip * parts + part, 2, e] = total[1, e] - total[0, e] ** 2 / number


@inlined()
def _read_row(
    maps: tuple[Floats, Floats],
    normalising: tuple[Floats, Floats],
    i: int,
    row: int,
    left: int,
    count: int,
    into: Floats,
    at: int,
) -> None:
    """Read ``count`` pixels of a row from column ``left`` on, normalised if that is asked for; zeros beyond the map."""
    height, width, c, more = maps[0].shape[1], maps[0].shape[2], maps[0].shape[3], maps[1].shape[3]
    x, skip = maps[0].reshape(-1), maps[1].reshape(-1)
    scale, shift = normalising[0].reshape(-1), normalising[1].reshape(-1)
    first, end = max(left, 0), min(left + count, width)
    if row < 0 or row >= height:
        first = end
    channels, inside = c + more, end - first
    to, pixel = at + (first - left) * channels, (i * height + row) * width + first
    into[at:to] = 0
    into[to + inside * channels : at + count * channels] = 0
    if len(scale):
        activate(x, pixel * c, c, inside, scale, shift, i * channels, into, to, channels)
        activate(skip, pixel * more, more, inside, scale, shift, i * channels + c, into, to + c, channels)
    else:
        into[to : to + inside * c] = x[pixel * c : (pixel + inside) * c]


@inlined()
def _read_tiles(
    rows: Floats, line: int, upright: Floats, v: Floats, plane: int, count: int, c: int, doubled: bool
) -> None:
    """v = B^T d B for ``count`` tiles side by side; rows are ``line`` floats apart, points of v ``plane`` floats."""
    p, step = (5, 2) if doubled else (6, 4)
    length = (step * count + 2) * c
    if doubled:
        _read_doubled(rows, 0, line, upright, 0, length, length)
    else:
        _read(rows, 0, line, upright, 0, length, length)
    for r in range(p):
        for t in range(count):
            at, to = r * length + step * t * c, p * r * plane + t * c
            if doubled:
                _read_doubled(upright, at, c, v, to, plane, c)
            else:
                _read(upright, at, c, v, to, plane, c)


@inlined()
def _multiply_points(
    v: Floats, plane_c: int, u: Floats, m: Floats, plane_k: int, points: int, count: int, c: int, k: int
) -> None:
    """m = v u at each point of evaluation: (count, c) times (c, k)."""
    for point in range(points):
        for panel in range(k // COLUMNS):
            at_u = (point * (k // COLUMNS) + panel) * c * COLUMNS
            for t in range(0, count, ROWS):
                at_m = point * plane_k + t * k + panel * COLUMNS
                multiply(v, point * plane_c + t * c, u, at_u, m, at_m, c, k)


@inlined()
def _write_tile(
    m: Floats, at: int, plane: int, half: Floats, y: Floats, at_y: int, row: int, k: int, doubled: bool
) -> None:
    """Write A^T m A of one tile to y; points of m are ``plane`` floats apart, rows of y ``row`` floats."""
    p = 5 if doubled else 6
    for r in range(p):
        if doubled:
            _write_doubled(m, r * plane + at, p * plane, half, r * k, p * k, k)
        else:
            _write(m, r * plane + at, p * plane, half, r * k, p * k, k)
    for r in range(4):
        if doubled:
            _write_doubled(half, r * p * k, k, y, at_y + r * row, k, k)
        else:
            _write(half, r * p * k, k, y, at_y + r * row, k, k)


@inlined()
def _add(added: tuple[Floats, Floats], projection: Floats, start: int, count: int, y: Floats, k: int) -> None:
    """Add the residual, if there is one, to ``count`` pixels of y from ``start`` on."""
    if len(projection):
        _project(added, projection, start, count, y, k)
    elif len(added[0]):
        same = added[0].reshape(-1)
        for e in range(start * k, (start + count) * k):
            y[e] += same[e]


@inlined()
def _project(maps: tuple[Floats, Floats], weights: Floats, start: int, count: int, y: Floats, k: int) -> None:
    """Add the 1 x 1 convolution of both maps to ``count`` pixels of y from ``start`` on."""
    c, more = maps[0].shape[3], maps[1].shape[3]
    x, skip, u = maps[0].reshape(-1), maps[1].reshape(-1), weights.reshape(-1)
    for pixel in range(start, start + count, FEW_ROWS):
        for panel in range(k // COLUMNS):
            at, to = panel * (c + more) * COLUMNS, pixel * k + panel * COLUMNS
            multiply_onto(x, pixel * c, u, at, y, to, c, k)
            if more:
                multiply_onto(skip, pixel * more, u, at + c * COLUMNS, y, to, more, k)
