"""The selective scan for CPU tensors, forward and backward. Letters as in ``interpreter.scan``.

One task takes some channels of one group of one image. The states of a channel fit into the
second-level cache, so the backward pass computes them again instead of keeping them, and walks
back over them with

    gh_l     = C_l gy_l + exp(delta_{l+1} A) gh_{l+1}
    gB_l     = gh_l delta_l u_l                       summed over the channels of the group
    gC_l     = gy_l h_l                               likewise
    gu_l     = D gy_l + delta_l sum_n(gh_l B_l)
    gdelta_l = sum_n gh_l (A exp(delta_l A) h_{l-1} + B_l u_l)
    gA       = sum_l gh_l delta_l exp(delta_l A) h_{l-1}

Channels whose sums meet in gB and gC are added up by one task in a fixed order, so results do not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch.autograd.function import FunctionCtx

TASKS_PER_GROUP = 2  # fixed, not the number of threads: the order of sums must not depend on it
Floats = NDArray[np.float32]


@intrinsic  # type: ignore[untyped-decorator]
def _bits_to_float(_context: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""
    if bits != types.int32:
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """exp(x) for x <= 0 to about 1e-7 relative, in operations that vectorise (Cephes' expf)."""
    x = max(np.float32(x), np.float32(-87.0))
    k = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _bits_to_float(np.int32((np.int32(k) + np.int32(127)) << np.int32(23)))


@njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _softplus(x: Any) -> Any:
    return x if x > 20 else np.log1p(np.exp(x))


@njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _forward(
    u: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats, bias: Floats, share: int, tasks: int
) -> Floats:
    """B, C (b, g, l, n); returns y (b, d, l)."""
    batch, channels, length = u.shape
    n = A.shape[1]
    groups = channels // share
    y = np.empty_like(u)
    for task in prange(batch * groups * tasks):
        i, g, part = task // (groups * tasks), task // tasks % groups, task % tasks
        h = np.empty(n, dtype=np.float32)
        for c in range(g * share + part * share // tasks, g * share + (part + 1) * share // tasks):
            h[:] = 0
            for p in range(length):
                step = np.float32(_softplus(delta[i, c, p] + bias[c]))
                drive = step * u[i, c, p]
                total = np.float32(0)
                for k in range(n):
                    h[k] = _exp(step * A[c, k]) * h[k] + drive * B[i, g, p, k]
                    total += C[i, g, p, k] * h[k]
                y[i, c, p] = total + D[c] * u[i, c, p]
    return y


@njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _backward(
    gy: Floats, u: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats, bias: Floats,
    share: int, tasks: int,
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats]:  # fmt: skip
    """Gradients of u, delta (b, d, l), A (b, d, n), B, C (tasks, b, g, l, n), D, bias (b, d)."""
    batch, channels, length = u.shape
    n = A.shape[1]
    groups = channels // share
    gu, gdelta = np.empty_like(u), np.empty_like(u)
    gA = np.zeros((batch, channels, n), dtype=np.float32)
    gB = np.zeros((tasks, batch, groups, length, n), dtype=np.float32)
    gC = np.zeros((tasks, batch, groups, length, n), dtype=np.float32)
    gD = np.zeros((batch, channels), dtype=np.float32)
    gbias = np.zeros((batch, channels), dtype=np.float32)
    for task in prange(batch * groups * tasks):
        i, g, part = task // (groups * tasks), task // tasks % groups, task % tasks
        decay = np.empty((length, n), dtype=np.float32)
        h = np.empty((length + 1, n), dtype=np.float32)
        steps = np.empty(length, dtype=np.float32)
        gh = np.empty(n, dtype=np.float32)
        for c in range(g * share + part * share // tasks, g * share + (part + 1) * share // tasks):
            h[0, :] = 0
            for p in range(length):
                step = np.float32(_softplus(delta[i, c, p] + bias[c]))
                steps[p] = step
                drive = step * u[i, c, p]
                for k in range(n):
                    decay[p, k] = _exp(step * A[c, k])
                    h[p + 1, k] = decay[p, k] * h[p, k] + drive * B[i, g, p, k]
            gh[:] = 0
            sum_D, sum_bias = np.float64(0), np.float64(0)
            for q in range(length):
                p = length - 1 - q
                step, x, up = steps[p], u[i, c, p], gy[i, c, p]
                to_u, to_step = np.float32(0), np.float32(0)
                for k in range(n):
                    gh[k] += C[i, g, p, k] * up
                    gC[part, i, g, p, k] += up * h[p + 1, k]
                    gB[part, i, g, p, k] += gh[k] * step * x
                    kept = decay[p, k] * h[p, k]
                    to_u += gh[k] * B[i, g, p, k]
                    to_step += gh[k] * A[c, k] * kept
                    gA[i, c, k] += gh[k] * step * kept
                    gh[k] *= decay[p, k]
                gu[i, c, p] = D[c] * up + step * to_u
                # d softplus(x) / dx = 1 - exp(-softplus(x))
                through = (to_step + x * to_u) * (np.float32(1) - np.float32(np.exp(-step)))
                gdelta[i, c, p] = through
                sum_D += up * x
                sum_bias += through
            gD[i, c] = sum_D
            gbias[i, c] = sum_bias
    return gu, gdelta, gA, gB, gC, gD, gbias


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        arrays, share = _as_arrays(tensors)
        with _torch_threads():
            return torch.from_numpy(_forward(*arrays, share, min(TASKS_PER_GROUP, share)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays, share = _as_arrays(ctx.saved_tensors)
        gy = gradients[0].float().contiguous().numpy()
        with _torch_threads():
            gu, gdelta, gA, gB, gC, gD, gbias = _backward(gy, *arrays, share, min(TASKS_PER_GROUP, share))
        gB, gC = (np.moveaxis(g.sum(axis=0), -1, -2) for g in (gB, gC))
        results = gu, gdelta, gA.sum(axis=0), gB, gC, gD.sum(axis=0), gbias.sum(axis=0)
        return tuple(torch.from_numpy(np.ascontiguousarray(g)) for g in results)


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Numba uses as many threads as torch does while the kernel runs."""
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _as_arrays(tensors: tuple[torch.Tensor, ...]) -> tuple[list[Floats], int]:
    """NumPy views, with B and C as (b, g, l, n); and the number of channels in a group."""
    u, delta, A, B, C, D, bias = (tensor.detach().numpy() for tensor in tensors)
    B, C = (np.ascontiguousarray(np.moveaxis(x, -1, -2)) for x in (B, C))
    return [u, delta, A, B, C, D, bias], u.shape[1] // B.shape[1]


def selective_scan(*tensors: torch.Tensor) -> torch.Tensor:
    """y (b, d, l) of u, delta, A, B, C, D, delta_bias: contiguous float32 CPU tensors."""
    y: torch.Tensor = _SelectiveScan.apply(*tensors)
    return y
