"""The same number of threads for torch and Numba."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

_at_once = threading.RLock()


@contextmanager
def torch_threads() -> Iterator[None]:
    """In this context, Numba's kernels use as many threads as torch does; torch's number stays as it is.

    Other threads wait to enter it, since two threads must not enter some of Numba's threading layers at once.
    """
    with _at_once:
        threads = torch.get_num_threads()
        numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:  # both may share one OpenMP runtime, in which Numba sets its number
                torch.set_num_threads(threads)
