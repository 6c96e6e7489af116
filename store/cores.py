"""As many threads as this process has cores, where a container has fewer than its machine.

torch counts the cores that it may run on. A container's share of their time (``docker run --cpus 2``, a
pod's CPU limit) is another number, which it does not look at: on a machine of 64 cores it would start 64 threads,
and all of them would stand still for most of every tenth of a second. Numba's kernels follow torch (``store.threads``).
Cores that the process is kept from (``taskset``) are not counted by either.
"""

from __future__ import annotations

import os
import sys

from dask.system import cpu_count

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who sets one of them has chosen the number of threads; ``accelerate launch`` and ``torchrun`` always do."""


def keep_to_quota() -> None:
    """Start no more threads than the container's share of the machine; a number that somebody chose stands."""
    share = cpu_count()
    if share < (os.cpu_count() or 1) and not any(name in os.environ for name in CHOSEN):
        keep_to(share)


def keep_to(cores: int) -> None:
    """So many threads of torch at most, in this process and in those that it starts."""
    os.environ[CHOSEN[0]] = str(cores)  # read where torch is imported later
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(cores, torch.get_num_threads()))
