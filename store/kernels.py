"""Numba's decorators with types: what is compiled keeps the signature that it is written with."""

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
    """Compile a function when it is first called, for all later processes, too; it runs without the GIL.

    Args:
        parallel: ``prange`` is spread over threads.
        fastmath: sums may be taken in another order, and nothing is looked for that is no number.
        error_model: ``numpy`` divides by zero as IEEE 754 does, where Python raises.
    """
    compiled: Callable[[F], F] = numba.njit(
        parallel=parallel, fastmath=fastmath, error_model=error_model, cache=True, nogil=True
    )
    return compiled


def inlined(*, fastmath: bool = False) -> Callable[[F], F]:
    """Compile a function into each kernel that calls it. A change of it must touch these: Numba's cache sees none."""
    compiled: Callable[[F], F] = numba.njit(inline="always", fastmath=fastmath)
    return compiled


def intrinsic(generate: Callable[..., Any]) -> Callable[..., Any]:
    """A function of kernels whose instructions are written down by hand: without the context that Numba hands over."""
    compiled: Callable[..., Any] = extending.intrinsic(generate)
    return compiled
