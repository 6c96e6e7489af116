"""Background threads that leave the processor to the thread that runs the network."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

import cv2

BEHIND = 5
"""Niceness that is added to threads that decode and write."""


def lower_priority() -> None:
    """Lower the priority of the calling thread; on Linux only, where each thread has a priority of its own."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + BEHIND)


class _OneThreadOfOpenCV:
    """A re-entrant context, for any number of threads, in which OpenCV starts no threads of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                cv2.setNumThreads(self._before)


ONE_THREAD_OF_OPENCV = _OneThreadOfOpenCV()
