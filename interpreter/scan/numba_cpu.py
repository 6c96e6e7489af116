"""The selective scan for CPU tensors, forward and backward. Letters as in ``interpreter.scan``.

Neighbouring channels of a group share B and C, so vectorisation runs over channels: a task takes LANES
channels through CHUNK positions at a time, state by state, in buffers (position, channel) that fit
into the first-level cache. The forward pass keeps the states at the borders of chunks; the backward
pass recomputes those in between, chunk by chunk from the last, and goes back over them with

    gh_l     = C_l gy_l + exp(delta_{l+1} A) gh_{l+1}
    gB_l     = gh_l delta_l u_l                       summed over the channels of the group
    gC_l     = gy_l h_l                               likewise
    gu_l     = D gy_l + delta_l sum_n(gh_l B_l)
    gdelta_l = sum_n gh_l (A exp(delta_l A) h_{l-1} + B_l u_l)
    gA       = sum_l gh_l delta_l exp(delta_l A) h_{l-1}

Each task adds up its channels' share of gB and gC in a fixed order, and the number of tasks is fixed too,
so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import FunctionCtx

from interpreter.exponential import LOG2_E, exp2
from store.kernels import Floats, inlined, kernel
from store.threads import torch_threads

TASKS_PER_GROUP = 2  # not the number of threads, which the order of sums must not depend on
LANES = 64
CHUNK = 64


@inlined(fastmath=True)
def _softplus(x: Any) -> Any:
    """max(x, 0) + log(1 + e), e = exp(-|x|), as 2 artanh(e / (2 + e)): exact for small e, and it vectorises."""
    e = exp2(abs(x) * np.float32(-LOG2_E))
    s = e / (np.float32(2) + e)  # at most 1/3, so seven terms of the series are enough
    q = s * s
    p = np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + np.float32(1)
    return max(x, np.float32(0)) + np.float32(2) * s * p


@kernel(fastmath=True, error_model="numpy")
def _load(
    u: Floats, delta: Floats, bias: Floats, i: int, c0: int, lanes: int, p0: int, size: int,
    x: Floats, step: Floats, row: Floats,
) -> None:  # fmt: skip
    """Load one tile: u into ``x`` and softplus(delta + bias) into ``step``, both (position, channel)."""
    for w in range(lanes):
        c = c0 + w
        for p in range(size):
            row[p] = _softplus(delta[i, c, p0 + p] + bias[c])
        for p in range(size):
            step[p, w] = row[p]
            x[p, w] = u[i, c, p0 + p]


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _forward(
    u: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats, bias: Floats, tasks: int
) -> tuple[Floats, Floats]:
    """Return y (b, d, l) and the states before each chunk, (b, chunks, n, d)."""
    batch, channels, length = u.shape
    n, groups = A.shape[1], B.shape[1]
    share, chunks = channels // groups, -(-length // CHUNK)
    y = np.empty_like(u)
    borders = np.empty((batch, chunks, n, channels), dtype=np.float32)
    for task in prange(batch * groups * tasks):
        i, g, part = task // (groups * tasks), task // tasks % groups, task % tasks
        first, last = g * share + part * share // tasks, g * share + (part + 1) * share // tasks
        x, step = np.empty((CHUNK, LANES), dtype=np.float32), np.empty((CHUNK, LANES), dtype=np.float32)
        out, row = np.empty((CHUNK, LANES), dtype=np.float32), np.empty(CHUNK, dtype=np.float32)
        a, h = np.empty((n, LANES), dtype=np.float32), np.empty((n, LANES), dtype=np.float32)
        for c0 in range(first, last, LANES):
            lanes = min(LANES, last - c0)
            for k in range(n):
                for w in range(lanes):
                    a[k, w] = A[c0 + w, k] * np.float32(LOG2_E)
                    h[k, w] = 0
            for chunk in range(chunks):
                p0 = chunk * CHUNK
                size = min(CHUNK, length - p0)
                _load(u, delta, bias, i, c0, lanes, p0, size, x, step, row)
                for p in range(size):
                    for w in range(lanes):
                        out[p, w] = D[c0 + w] * x[p, w]
                        x[p, w] *= step[p, w]
                for k in range(n):
                    for w in range(lanes):
                        borders[i, chunk, k, c0 + w] = h[k, w]
                    for p in range(size):
                        to_state, from_state = B[i, g, k, p0 + p], C[i, g, k, p0 + p]
                        for w in range(lanes):
                            state = exp2(step[p, w] * a[k, w]) * h[k, w] + x[p, w] * to_state
                            h[k, w] = state
                            out[p, w] += from_state * state
                for w in range(lanes):
                    for p in range(size):
                        y[i, c0 + w, p0 + p] = out[p, w]
    return y, borders


@kernel(parallel=True, fastmath=True, error_model="numpy")
def _backward(
    gy: Floats, u: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats, bias: Floats,
    borders: Floats, tasks: int,
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats]:  # fmt: skip
    """Return the gradients of u, delta (b, d, l) and parts of those of the others, to be summed over the first axis:

    A (b, n, d), B, C (tasks, b, g, n, l), D, bias (b, d).
    """
    batch, channels, length = u.shape
    n, groups, chunks = A.shape[1], B.shape[1], borders.shape[1]
    share = channels // groups
    gu, gdelta = np.empty_like(u), np.empty_like(u)
    gA = np.zeros((batch, n, channels), dtype=np.float32)
    gB = np.zeros((tasks, batch, groups, n, length), dtype=np.float32)
    gC = np.zeros((tasks, batch, groups, n, length), dtype=np.float32)
    gD, gbias = np.zeros((batch, channels), dtype=np.float32), np.zeros((batch, channels), dtype=np.float32)
    for task in prange(batch * groups * tasks):
        i, g, part = task // (groups * tasks), task // tasks % groups, task % tasks
        first, last = g * share + part * share // tasks, g * share + (part + 1) * share // tasks
        tile = (CHUNK, LANES)
        x, step, up = (
            np.empty(tile, dtype=np.float32),
            np.empty(tile, dtype=np.float32),
            np.empty(tile, dtype=np.float32),
        )
        to_x, to_step = np.empty(tile, dtype=np.float32), np.empty(tile, dtype=np.float32)
        decay, h = np.empty(tile, dtype=np.float32), np.empty((CHUNK + 1, LANES), dtype=np.float32)
        a, gh, ga = (
            np.empty((n, LANES), dtype=np.float32),
            np.empty((n, LANES), dtype=np.float32),
            np.empty(LANES, dtype=np.float32),
        )
        row = np.empty(CHUNK, dtype=np.float32)
        for c0 in range(first, last, LANES):
            lanes = min(LANES, last - c0)
            for k in range(n):
                for w in range(lanes):
                    a[k, w] = A[c0 + w, k] * np.float32(LOG2_E)
                    gh[k, w] = 0
            for behind in range(chunks):
                chunk = chunks - 1 - behind
                p0 = chunk * CHUNK
                size = min(CHUNK, length - p0)
                _load(u, delta, bias, i, c0, lanes, p0, size, x, step, row)
                for w in range(lanes):
                    for p in range(size):
                        up[p, w] = gy[i, c0 + w, p0 + p]
                for p in range(size):
                    for w in range(lanes):
                        to_x[p, w] = 0
                        to_step[p, w] = 0
                for k in range(n):
                    for w in range(lanes):
                        h[0, w] = borders[i, chunk, k, c0 + w]
                        ga[w] = 0
                    for p in range(size):
                        to_state = B[i, g, k, p0 + p]
                        for w in range(lanes):
                            kept = exp2(step[p, w] * a[k, w])
                            decay[p, w] = kept
                            h[p + 1, w] = kept * h[p, w] + step[p, w] * x[p, w] * to_state
                    for q in range(size):
                        p = size - 1 - q
                        to_state, from_state = B[i, g, k, p0 + p], C[i, g, k, p0 + p]
                        sum_B, sum_C = np.float32(0), np.float32(0)
                        for w in range(lanes):
                            back = gh[k, w] + from_state * up[p, w]
                            sum_C += up[p, w] * h[p + 1, w]
                            sum_B += back * step[p, w] * x[p, w]
                            kept = back * decay[p, w]
                            to_x[p, w] += back * to_state
                            to_step[p, w] += kept * h[p, w] * a[k, w]
                            ga[w] += kept * h[p, w] * step[p, w]
                            gh[k, w] = kept
                        gB[part, i, g, k, p0 + p] += sum_B
                        gC[part, i, g, k, p0 + p] += sum_C
                    for w in range(lanes):
                        gA[i, k, c0 + w] += ga[w]
                for w in range(lanes):
                    c = c0 + w
                    sum_D, sum_bias = np.float32(0), np.float32(0)
                    for p in range(size):
                        # a is A / ln 2; d softplus(x) / dx = 1 - exp(-softplus(x))
                        through = (to_step[p, w] * np.float32(1 / LOG2_E) + x[p, w] * to_x[p, w]) * (
                            np.float32(1) - exp2(step[p, w] * np.float32(-LOG2_E))
                        )
                        gu[i, c, p0 + p] = D[c] * up[p, w] + step[p, w] * to_x[p, w]
                        gdelta[i, c, p0 + p] = through
                        sum_D += up[p, w] * x[p, w]
                        sum_bias += through
                    gD[i, c] += sum_D
                    gbias[i, c] += sum_bias
    return gu, gdelta, gA, gB, gC, gD, gbias


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *tensors: torch.Tensor) -> torch.Tensor:
        (u, delta, A, B, C, D, bias), tasks = _as_arrays(tensors)
        with torch_threads():
            y, borders = _forward(u, delta, A, B, C, D, bias, tasks)
        ctx.save_for_backward(*tensors, torch.from_numpy(borders))
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *tensors, borders = ctx.saved_tensors
        (u, delta, A, B, C, D, bias), tasks = _as_arrays(tensors)
        gy = gradients[0].float().contiguous().numpy()
        with torch_threads():
            gu, gdelta, gA, gB, gC, gD, gbias = _backward(gy, u, delta, A, B, C, D, bias, borders.numpy(), tasks)
        results = gu, gdelta, gA.sum(axis=0).T, gB.sum(axis=0), gC.sum(axis=0), gD.sum(axis=0), gbias.sum(axis=0)
        return tuple(torch.from_numpy(np.ascontiguousarray(g)) for g in results)


def _as_arrays(tensors: Sequence[torch.Tensor]) -> tuple[list[Floats], int]:
    """The tensors as NumPy views, and the number of tasks that share the channels of a group."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    share = arrays[0].shape[1] // arrays[3].shape[1]
    return arrays, max(1, min(TASKS_PER_GROUP, 2 * share // LANES))  # half of LANES per task is enough to be fast


def selective_scan(*tensors: torch.Tensor) -> torch.Tensor:
    """Return y (b, d, l) for u, delta, A, B, C, D, delta_bias, which are contiguous float32 CPU tensors."""
    y: torch.Tensor = _SelectiveScan.apply(*tensors)
    return y
