"""Memory of long work on CPUs, kept by the process instead of handed back and fetched again.

A network at 512 pixels makes and drops hundreds of tensors of tens of megabytes. glibc takes each from the
system and returns it, and the system clears every page anew: a third of a training step on two cores.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it asks for next; whether the C library was told.

    The process grows to the largest step and stays there until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return all(mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)))
