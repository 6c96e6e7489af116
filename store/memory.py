"""Memory of long work on CPUs, kept by the process instead of handed back and fetched again.

A network at 512 pixels makes and drops hundreds of tensors of tens of megabytes. glibc takes each from the
system and returns it, and the system clears every page anew: a third of a training step on two cores.

What is kept may come to lie in pieces. Tensors are aligned, and glibc 2.36 finds no room for them in many a hole
that would do: training on maps of 15 MB grew by 25 MB a step, to 9 GB, of which 0.4 GB were in use.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
SLACK = 1 << 30
"""Bytes of holes that are nobody's trouble."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it asks for next; whether the C library was told.

    The process grows to the largest step, and beyond it where memory comes to lie in pieces: ``Holes``.
    """
    libc = _glibc()
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return libc is not None and all(libc.mallopt(option, value) for option, value in options)


class Holes:
    """What was freed and does not fit what is asked for: handed back once it is as much as a step needs.

    For work whose steps are alike, as training's are. Without glibc, or without /proc, nothing is done.

    Args:
        slack: bytes that are kept in any case.
    """

    def __init__(self, slack: int = SLACK) -> None:
        self._slack = slack
        self._needed: int | None = None
        self._libc = _glibc()

    def after_step(self) -> bool:
        """To be called where little is in use; whether holes were handed back."""
        if self._libc is None:
            return False
        resident = resident_bytes()
        if self._needed is None:  # the first step, or the first one without holes: all of this is what a step needs
            self._needed = resident
        if resident <= self._needed + max(self._needed, self._slack):
            return False
        self._libc.malloc_trim(0)
        self._needed = None
        return True


def resident_bytes() -> int:
    """Bytes of memory that this process takes now; 0 where the system does not tell."""
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
