"""Numba's decorators with types: to type checkers, a compiled function keeps the signature it is written with.

Numba compiles a function anew if its own file has changed, and does not look at the files of the functions and
constants that were compiled into it. Here the cache's folder is named after the contents of all of them.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
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

    def compiled(function: F) -> F:
        with _cache_for(function.__module__):
            made: F = numba.njit(parallel=parallel, fastmath=fastmath, error_model=error_model, cache=True, nogil=True)(
                function
            )
        return made

    return compiled


def inlined(*, fastmath: bool = False) -> Callable[[F], F]:
    """Compile a function into each kernel that calls it."""
    compiled: Callable[[F], F] = numba.njit(inline="always", fastmath=fastmath)
    return compiled


def intrinsic(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function for kernels of a generator of LLVM code; kernels call it without Numba's typing context."""
    compiled: Callable[..., Any] = extending.intrinsic(generate)
    return compiled


@contextmanager
def _cache_for(module: str) -> Iterator[None]:
    """In this context, Numba caches in a folder named after a module's sources, below the one that it uses otherwise.

    Where that folder cannot be written to, Numba chooses another one by itself.
    """
    usual, folder = numba.config.CACHE_DIR, Path(__file__).parent / "__pycache__"
    numba.config.CACHE_DIR = str(Path(usual or folder) / f"kernels-{_digest_of_sources(module)[:16]}")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = usual


@cache
def _digest_of_sources(module: str) -> str:
    """sha256 of a module's file and of those that it imports from its own package or from this one, however deep."""
    packages, digest = {name.partition(".")[0] for name in (module, __name__)}, hashlib.sha256()
    seen, left = {module}, [module]
    while left:
        path = getattr(sys.modules[left.pop()], "__file__", None)
        if path is None:
            continue
        source = Path(path).read_bytes()
        digest.update(source)
        for name in sorted(_imported(source)):
            if name in sys.modules and name.partition(".")[0] in packages and name not in seen:
                seen.add(name)
                left.append(name)
    return digest.hexdigest()


def _imported(source: bytes) -> set[str]:
    """Names of all modules that a source may import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return names
