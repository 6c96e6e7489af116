"""The arithmetic of the int8 encoding: the range of each channel, and numbers rounded to steps within it.

n  images     p  pixels     c  channels

On CPUs, for maps whose channels are adjacent in memory (channels last), torch takes eight passes, and one more to
put the channels first, as they are stored. The kernels here give bit-identical results in two passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from store.kernels import Floats, kernel
from store.threads import torch_threads

TASKS = 16  # parallel tasks for each image
LANES, UNROLL = 16, 4  # pixels compared in parallel, and pixels compared in a row before results are written
TILE = 64  # pixels transposed to channels first at a time, few enough for the first-level cache
LOW, HIGH = np.float32(-128), np.float32(127)
NEAREST = np.float32(1.5 * 2**23)  # adding it leaves no fraction bits: rounds half to even, as torch does


def channel_ranges(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest number of each channel, float32 (..., c) each, of float32 maps (..., c, h, w).

    At least one of the two is not finite if the channel holds NaN or infinity.
    """
    if not _is_channels_last(maps):
        return maps.amin(dim=(-2, -1)), maps.amax(dim=(-2, -1))
    x = _pixels(maps)
    found = np.empty((len(x), TASKS, 2, x.shape[2]), dtype=np.float32)
    with torch_threads():
        _ranges(x, found)
    return torch.from_numpy(found[:, :, 0].min(axis=1)), torch.from_numpy(found[:, :, 1].max(axis=1))


def rounded(maps: torch.Tensor, offset: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """(maps - offset) / step, rounded and clamped to int8; maps float32 (..., c, h, w), the others (..., c)."""
    if not _is_channels_last(maps):
        steps = (maps - offset[..., None, None]) / step[..., None, None]
        return steps.round_().clamp_(-128, 127).to(torch.int8)
    x = _pixels(maps)
    stored = np.empty((len(x), x.shape[2], x.shape[1]), dtype=np.int8)
    with torch_threads():
        _round(x, offset.numpy(), step.numpy(), stored)
    return torch.from_numpy(stored).view(maps.shape)


def _is_channels_last(maps: torch.Tensor) -> bool:
    return maps.device.type == "cpu" and maps.ndim == 4 and maps.permute(0, 2, 3, 1).is_contiguous()


def _pixels(maps: torch.Tensor) -> Floats:
    """View maps (n, c, h, w) as (n, p, c), in the same memory."""
    x: Floats = maps.detach().permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return x


@kernel(parallel=True)
def _ranges(x: Floats, found: NDArray[Any]) -> None:
    images, pixels, channels = x.shape
    for task in prange(images * TASKS):
        i, part = task // TASKS, task % TASKS
        start = min(part * pixels // TASKS, pixels - 1)
        stop = max((part + 1) * pixels // TASKS, start + 1)
        width = LANES * channels
        smallest, largest = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        nan_flags = np.zeros(width, np.float32)  # becomes NaN at the first number that is not finite
        rest = stop - (stop - start) % (LANES * UNROLL)
        for first in range(start, rest, LANES * UNROLL):
            at = x[i, first : first + LANES * UNROLL].reshape(-1)
            for e in range(width):
                low, high, nan = smallest[e], largest[e], nan_flags[e]
                for deep in range(UNROLL):
                    value = at[deep * width + e]
                    low = value if value < low else low
                    high = value if value > high else high
                    nan += value * np.float32(0)
                smallest[e], largest[e], nan_flags[e] = low, high, nan
        for pixel in range(rest, stop):
            at = x[i, pixel]
            for c in range(channels):
                smallest[c] = at[c] if at[c] < smallest[c] else smallest[c]
                largest[c] = at[c] if at[c] > largest[c] else largest[c]
                nan_flags[c] += at[c] * np.float32(0)
        for c in range(channels):
            no_number = nan_flags[c::channels].sum()
            found[i, part, 0, c] = smallest[c::channels].min() + no_number
            found[i, part, 1, c] = largest[c::channels].max() + no_number


@kernel(parallel=True, error_model="numpy")
def _round(x: Floats, offset: Floats, step: Floats, stored: NDArray[np.int8]) -> None:
    images, pixels, channels = x.shape
    for task in prange(images * TASKS):
        i, part = task // TASKS, task % TASKS
        offsets, steps, tile = offset[i], step[i], np.empty((TILE, channels), np.int8)
        for first in range(part * pixels // TASKS, (part + 1) * pixels // TASKS, TILE):
            count = min(TILE, (part + 1) * pixels // TASKS - first)
            for pixel in range(count):
                at, to = x[i, first + pixel], tile[pixel]
                for c in range(channels):
                    value = (at[c] - offsets[c]) / steps[c] + NEAREST - NEAREST
                    value = value if value > LOW else LOW
                    to[c] = np.int8(np.int32(value if value < HIGH else HIGH))
            for c in range(channels):
                plane = stored[i, c, first : first + count]
                for pixel in range(count):
                    plane[pixel] = tile[pixel, c]
