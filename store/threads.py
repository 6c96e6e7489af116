"""One number of threads for torch and Numba."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

_at_once = threading.RLock()


@contextmanager
def torch_threads() -> Iterator[None]:
    """Numba's kernels use as many threads as torch does within this context; torch's number stays as it is.

    Who comes meanwhile waits: not every threading layer of Numba may be entered by two threads.
    """
    with _at_once:
        threads = torch.get_num_threads()
        numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:  # both may share one OpenMP, and Numba tells it its own number
                torch.set_num_threads(threads)
