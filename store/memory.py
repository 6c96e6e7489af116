"""Keeping the memory of long CPU work in the process instead of returning it to the system and fetching it again.

A network at 512 pixels allocates and frees hundreds of tensors of tens of megabytes. glibc takes each from the
system and returns it, and the system clears every page again: a third of a training step on two cores.

Memory that is kept may become fragmented. Tensors are aligned, and glibc 2.36 does not place them in many a hole
that would fit: training on maps of 15 MB grew by 25 MB a step, to 9 GB, of which 0.4 GB were in use.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # values in glibc's malloc.h
SLACK = 1 << 30
"""Bytes of holes that are tolerated in any case."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; return whether the C library accepted that.

    The process grows to the size of its largest step, and beyond it if memory becomes fragmented: see ``HeapTrimmer``.
    """
    libc = _glibc()
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return libc is not None and all(libc.mallopt(option, value) for option, value in options)


class HeapTrimmer:
    """Returns fragmented free memory to the system once it is as much as a step needs.

    For work whose steps are alike, such as training. Holes that earlier work has left are returned at once, or else a
    second training would be given as much again as the first had at its end. Without glibc, or without /proc, nothing
    is done.

    Args:
        slack: bytes of free memory that are kept in any case.
    """

    def __init__(self, slack: int = SLACK) -> None:
        self._slack = slack
        self._needed: int | None = None
        self._libc = _glibc()
        if self._libc is not None:
            self._libc.malloc_trim(0)

    def trim_if_fragmented(self) -> bool:
        """Call after a step, when little memory is in use; returns whether holes were returned to the system."""
        if self._libc is None:
            return False
        resident = resident_bytes()
        if self._needed is None:  # the first step, or the first after a trim: no holes yet, all of it is needed
            self._needed = resident
        if resident <= self._needed + max(self._needed, self._slack):
            return False
        self._libc.malloc_trim(0)
        self._needed = None
        return True


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
