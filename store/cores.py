"""As many threads as this process has cores, where a container has fewer than its machine.

torch and Numba count the cores that they may run on. A container's share of their time (``docker run --cpus 2``, a
pod's CPU limit) is another number, which they do not look at: on a machine of 64 cores they would start 64 threads,
and all of them would stand still for most of every tenth of a second.
"""

from __future__ import annotations

import os
import sys

from dask.system import cpu_count

CHOSEN = "OMP_NUM_THREADS"
"""Who sets it has chosen the number of threads."""


def keep_to_quota() -> None:
    """Start no more threads than the container's share of the machine; a number that somebody chose stands."""
    share = cpu_count()
    if share < (os.cpu_count() or 1) and CHOSEN not in os.environ:
        keep_to(share)


def keep_to(cores: int) -> None:
    """So many threads for torch, Numba and the processes that this one starts."""
    os.environ[CHOSEN] = os.environ["NUMBA_NUM_THREADS"] = str(cores)  # read by whoever is imported later
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(cores)  # Numba's kernels follow it (store.threads)
