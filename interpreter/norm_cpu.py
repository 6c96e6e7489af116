"""A timestep-adaptive group norm and the SiLU after it, fused for CPUs: two passes forward and two backward.

    n = (x - mean) rstd    over the channels of a group and all pixels
    a = (1 + scale) n + shift
    y = a sigmoid(a)

b  batch    p  pixels    c  channels, contiguous in memory    g  groups

Forward computes the moments, then writes y. Backward recomputes a, with d = gy sigmoid(a) (1 + a (1 - sigmoid(a))):

    gshift = sum_p d      gscale = sum_p d n
    gx     = rstd ((1 + scale) d - mean over the group of (1 + scale) d - n mean over the group of (1 + scale) d n)

torch takes five passes forward and more than ten backward. Pixels are divided among a fixed number of tasks
whose sums are added in order, so results do not depend on the number of threads. Sums are accumulated in float32
over at most ROWS pixels, and in float64 beyond.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import FunctionCtx

from interpreter.exponential import LOG2_E, exp2
from store.kernels import Doubles, Floats, inlined, kernel
from store.threads import torch_threads

TASKS = 8  # per image; fixed, since the order of sums must not depend on the number of threads
ROWS = 256


@inlined(fastmath=True)
def _sigmoid(a: Any) -> Any:
    e = exp2(abs(a) * np.float32(-LOG2_E))
    return (np.float32(1) if a >= 0 else e) / (np.float32(1) + e)


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _moments(x: Floats) -> tuple[Doubles, Doubles, Doubles]:
    """For each task of an image (b, TASKS, c): its pivot, and the sums over its pixels of x - pivot and the square."""
    batch, pixels, channels = x.shape
    first = np.zeros((batch, TASKS, channels), dtype=np.float64)
    sums = np.zeros((batch, TASKS, channels), dtype=np.float64)
    squares = np.zeros((batch, TASKS, channels), dtype=np.float64)
    for task in prange(batch * TASKS):
        i, part = task // TASKS, task % TASKS
        start, stop = part * pixels // TASKS, (part + 1) * pixels // TASKS
        pivot = np.zeros(channels, dtype=np.float32)
        if start < stop:
            pivot[:] = x[i, start]
        s, q = np.empty(channels, dtype=np.float32), np.empty(channels, dtype=np.float32)
        for low in range(start, stop, ROWS):
            s[:] = 0
            q[:] = 0
            for p in range(low, min(low + ROWS, stop)):
                for c in range(channels):
                    v = x[i, p, c] - pivot[c]
                    s[c] += v
                    q[c] += v * v
            for c in range(channels):
                sums[i, part, c] += s[c]
                squares[i, part, c] += q[c]
        for c in range(channels):
            first[i, part, c] = pivot[c]
    return first, sums, squares


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _activate(x: Floats, factor: Floats, addend: Floats) -> Floats:
    """y (b, p, c) for a = factor x + addend, with factor and addend (b, c)."""
    batch, pixels, channels = x.shape
    y = np.empty_like(x)
    for task in prange(batch * TASKS):
        i, part = task // TASKS, task % TASKS
        for p in range(part * pixels // TASKS, (part + 1) * pixels // TASKS):
            for c in range(channels):
                a = factor[i, c] * x[i, p, c] + addend[i, c]
                y[i, p, c] = a * _sigmoid(a)
    return y


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _through_silu(
    gy: Floats, x: Floats, factor: Floats, addend: Floats, mean: Floats, rstd: Floats
) -> tuple[Floats, Doubles, Doubles]:
    """d (b, p, c), and each task's sums over its pixels of d and of d n, each (b, TASKS, c)."""
    batch, pixels, channels = x.shape
    d = np.empty_like(x)
    sums = np.zeros((batch, TASKS, channels), dtype=np.float64)
    products = np.zeros((batch, TASKS, channels), dtype=np.float64)
    for task in prange(batch * TASKS):
        i, part = task // TASKS, task % TASKS
        stop = (part + 1) * pixels // TASKS
        s, q = np.empty(channels, dtype=np.float32), np.empty(channels, dtype=np.float32)
        for low in range(part * pixels // TASKS, stop, ROWS):
            s[:] = 0
            q[:] = 0
            for p in range(low, min(low + ROWS, stop)):
                for c in range(channels):
                    a = factor[i, c] * x[i, p, c] + addend[i, c]
                    share = _sigmoid(a)
                    v = gy[i, p, c] * share * (np.float32(1) + a * (np.float32(1) - share))
                    d[i, p, c] = v
                    s[c] += v
                    q[c] += v * ((x[i, p, c] - mean[i, c]) * rstd[i, c])
            for c in range(channels):
                sums[i, part, c] += s[c]
                products[i, part, c] += q[c]
    return d, sums, products


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _combine(d: Floats, x: Floats, of_d: Floats, of_x: Floats, addend: Floats) -> None:
    """Replace d by of_d d + of_x x + addend in place; the coefficients are (b, c)."""
    batch, pixels, channels = x.shape
    for task in prange(batch * TASKS):
        i, part = task // TASKS, task % TASKS
        for p in range(part * pixels // TASKS, (part + 1) * pixels // TASKS):
            for c in range(channels):
                d[i, p, c] = of_d[i, c] * d[i, p, c] + of_x[i, c] * x[i, p, c] + addend[i, c]


class _NormedSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        pixels = _pixels(x)
        with torch_threads():
            mean, rstd = _statistics(_moments(pixels), pixels.shape[1], groups, eps)
            factor, addend = _affine(mean, rstd, scale, shift)
            y = _activate(pixels, factor, addend)
        ctx.save_for_backward(x, scale, shift, torch.from_numpy(mean), torch.from_numpy(rstd))
        ctx.groups = groups  # type: ignore[attr-defined]
        return _map(y, x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, shift, means, rstds = ctx.saved_tensors
        mean, rstd, pixels = means.numpy(), rstds.numpy(), _pixels(x)
        gy = _pixels(gradients[0].float().contiguous(memory_format=torch.channels_last))
        factor, addend = _affine(mean, rstd, scale, shift)
        with torch_threads():
            d, sums, products = _through_silu(gy, pixels, factor, addend, mean, rstd)
            gshift, gscale = sums.sum(axis=1), products.sum(axis=1)
            gain = 1 + scale.detach().double().numpy()
            count = pixels.shape[1] * pixels.shape[2] // ctx.groups
            level = _of_groups(gain * gshift, ctx.groups) / count
            slope = _of_groups(gain * gscale, ctx.groups) / count
            of_x = -slope * rstd * rstd
            constant = -rstd * level - of_x * mean
            _combine(d, pixels, factor, of_x.astype(np.float32), constant.astype(np.float32))
        gradient_of = [torch.from_numpy(g.astype(np.float32)) for g in (gscale, gshift)]
        return _map(d, x), *gradient_of, None, None


def normed_silu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """The group norm and SiLU above: y (b, c, h, w) of x, float32 on a CPU; scale and shift (b, c)."""
    y: torch.Tensor = _NormedSilu.apply(x.contiguous(memory_format=torch.channels_last), scale, shift, groups, eps)
    return y


def _pixels(x: torch.Tensor) -> Floats:
    """A channels-last map (b, c, h, w) as (b, p, c), without a copy."""
    b, c = x.shape[:2]
    array: Floats = x.detach().permute(0, 2, 3, 1).numpy().reshape(b, -1, c)
    return array


def _map(pixels: Floats, like: torch.Tensor) -> torch.Tensor:
    b, c, h, w = like.shape
    return torch.from_numpy(pixels).view(b, h, w, c).permute(0, 3, 1, 2)


def _statistics(
    moments: tuple[Doubles, Doubles, Doubles], pixels: int, groups: int, eps: float
) -> tuple[Floats, Floats]:
    """Mean and reciprocal standard deviation (rstd) of each channel's group, (b, c) each."""
    first, sums, squares = moments
    edges = np.arange(TASKS + 1) * pixels // TASKS
    counts = np.diff(edges)[None, :, None]
    means = first + sums / np.maximum(counts, 1)
    around = squares - sums * sums / np.maximum(counts, 1)
    total = pixels * sums.shape[2] // groups
    mean = _of_groups((means * counts).sum(axis=1), groups) / total
    spread = (around + counts * (means - mean[:, None]) ** 2).sum(axis=1)
    rstd = 1 / np.sqrt(_of_groups(spread, groups) / total + eps)
    return mean.astype(np.float32), rstd.astype(np.float32)


def _of_groups(values: Doubles, groups: int) -> Doubles:
    """Sums of values (b, c) over the channels of a group, repeated for each of them: (b, c)."""
    b, c = values.shape
    sums: Doubles = values.reshape(b, groups, -1).sum(axis=2).repeat(c // groups, axis=1)
    return sums


def _affine(mean: Floats, rstd: Floats, scale: torch.Tensor, shift: torch.Tensor) -> tuple[Floats, Floats]:
    """Factor and addend, (b, c) each, such that a = factor x + addend."""
    factor = rstd * (1 + scale.detach().numpy())
    return factor, shift.detach().numpy() - mean * factor
