"""Numba's decorators with types: to type checkers, a compiled function keeps the signature it is written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numba
import numpy as np
from numba import extending
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def kernel(
    *, parallel: bool = False, fastmath: bool = False, error_model: Literal["python", "numpy"] = "python"
) -> Callable[[F], F]:
    """Compile a function at its first call and cache it on disk for later processes; it runs without the GIL.

    Args:
        parallel: distribute ``prange`` over threads.
        fastmath: allow sums to be reordered, and assume that no number is NaN or infinite.
        error_model: ``numpy`` divides by zero as IEEE 754 does, ``python`` raises.
    """
    compiled: Callable[[F], F] = numba.njit(
        parallel=parallel, fastmath=fastmath, error_model=error_model, cache=True, nogil=True
    )
    return compiled


def inlined(*, fastmath: bool = False) -> Callable[[F], F]:
    """Compile a function into each kernel that calls it.

    When it changes, touch the files of those kernels, too: Numba's cache looks for changes in no others.
    """
    compiled: Callable[[F], F] = numba.njit(inline="always", fastmath=fastmath)
    return compiled


def intrinsic(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function for kernels of a generator of LLVM code; kernels call it without Numba's typing context."""
    compiled: Callable[..., Any] = extending.intrinsic(generate)
    return compiled
