"""When each entry was last used, so that the least recently used can go first and none that is being read.

Readers stamp an entry before they open it, at most once in ``GRACE / 2`` seconds. Whoever removes an
entry leaves those alone that were stamped within ``GRACE``, takes the marker away, looks at the stamp
again, and puts the marker back if a reader came in between.
"""

from __future__ import annotations

import time

from store.errors import MissingEntry, StoreFull, StoreUnavailable
from store.objects import Objects

USES = "used"
AGAIN = 10.0
"""Seconds until a stamp is tried again that a store could not take."""
GRACE = 600.0
"""Seconds for which an entry counts as being read after it was opened."""


class Uses:
    """Stamps of the entries of one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._stamped: dict[str, float] = {}

    def stamp(self, path: str) -> None:
        """Say that an entry is being used; a stamp that cannot be written is left out until it is due anew."""
        now = time.time()
        if now - self._stamped.get(path, 0.0) < GRACE / 2:
            return
        try:
            self._objects.put(_key(path), repr(now).encode())
        except (StoreFull, StoreUnavailable):  # for now
            self._stamped[path] = now - GRACE / 2 + AGAIN
        except (OSError, ValueError):  # for good, such as a read-only Zarr store
            self._stamped[path] = now
        else:
            self._stamped[path] = now

    def last(self, path: str) -> float:
        """Seconds since 1970. What was never stamped counts as used now, and is stamped."""
        try:
            return float(self._objects.get(_key(path)))
        except (MissingEntry, ValueError):
            self._stamped.pop(path, None)
            self.stamp(path)
            return time.time()

    def forget(self, path: str) -> None:
        """Remove the stamp of an entry that is gone."""
        self._objects.remove(_key(path))
        self._stamped.pop(path, None)


def _key(path: str) -> str:
    return f"{USES}/{path}"
