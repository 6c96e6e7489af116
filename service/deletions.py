"""Which photographs were deleted lately, so that work which began before keeps nothing of them."""

from __future__ import annotations

import threading
import time

REMEMBERED = 3600.0
"""Seconds for which a deletion is remembered: longer than work on one photograph takes."""


class Deletions:
    """The photographs that were deleted lately; safe to use from several threads."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def add(self, spec: str, image_id: str) -> None:
        """Remember that a photograph's features of a spec, named by its digest, are being deleted now."""
        now = time.monotonic()
        with self._lock:
            self._times = {one: then for one, then in self._times.items() if now - then < REMEMBERED}
            self._times[spec, image_id] = now

    def last(self, spec: str, image_id: str) -> float:
        """Return when a photograph's features of a spec were deleted last (``time.monotonic``); 0 if not lately."""
        with self._lock:
            return self._times.get((spec, image_id), 0.0)
