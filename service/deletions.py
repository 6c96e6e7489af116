"""Which photographs were deleted lately, so that work which began before keeps nothing of them."""

from __future__ import annotations

import threading
import time

REMEMBERED = 3600.0
"""Seconds for which a deletion is remembered: longer than work on one photograph takes."""


class Deletions:
    """The photographs that were deleted lately; safe to use from several threads."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, image_id: str) -> None:
        """Remember that a photograph is being deleted now."""
        now = time.monotonic()
        with self._lock:
            self._times = {one: then for one, then in self._times.items() if now - then < REMEMBERED}
            self._times[image_id] = now

    def since(self, image_id: str, began: float) -> bool:
        """Return whether a photograph was deleted at or after ``began``, in ``time.monotonic``."""
        with self._lock:
            return self._times.get(image_id, float("-inf")) >= began
