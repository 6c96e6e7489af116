"""Limiting threads to the CPU quota of a container that may use fewer cores than its machine has.

torch counts the cores on which it may run. It does not look at a container's quota of their time (``docker run
--cpus 2``, a pod's CPU limit): on a machine of 64 cores it would start 64 threads, all of which would be throttled for
most of every tenth of a second. Numba's kernels follow torch (``store.threads``). Cores on which the process may not
run (``taskset``) are counted by neither torch nor ``cpu_count``.
"""

from __future__ import annotations

import os
import sys

from dask.system import cpu_count

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that set the number of threads, which is then kept; ``accelerate launch`` and ``torchrun`` set one."""


def limit_threads_to_quota() -> None:
    """Start no more threads than the container's quota of cores, unless a variable of ``THREAD_VARIABLES`` is set."""
    share = cpu_count()
    if share < (os.cpu_count() or 1) and not any(name in os.environ for name in THREAD_VARIABLES):
        limit_threads(share)


def limit_threads(cores: int) -> None:
    """Limit torch to ``cores`` threads, in this process and in those that it starts."""
    os.environ[THREAD_VARIABLES[0]] = str(cores)  # read when torch is imported later
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(cores, torch.get_num_threads()))
