"""When each entry was last used, so that the least recently used are removed first and none that is being read.

Readers stamp an entry before they open it, or look again afterwards, at most once in ``GRACE / 2`` seconds. Whoever
removes entries spares those stamped within ``GRACE``. For any other it removes the marker, reads the stamp again, and
puts the marker back if a reader came in between.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress

from store.errors import MissingEntry, StoreFull, StoreUnavailable
from store.objects import Objects

USES = "used"
RETRY_AFTER = 10.0
"""Seconds until a stamp that the store could not take is tried again."""
GRACE = 600.0
"""Seconds after a stamp for which an entry counts as being read."""


class Uses:
    """The stamps of one store, which record when each entry was last used."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._stamped: dict[str, float] = {}
        self._tidied = time.time()

    def stamp(self, path: str) -> bool:
        """Record that an entry is being used, and return whether a stamp was written.

        If it cannot be written, it is skipped and tried again later.
        """
        now = time.time()
        self._forget_old(now)
        if now - self._stamped.get(path, 0.0) < GRACE / 2:
            return False
        try:
            self._objects.put(_key(path), repr(now).encode())
        except (StoreFull, StoreUnavailable):  # temporary: try again soon
            self._stamped[path] = now - GRACE / 2 + RETRY_AFTER
        except (OSError, ValueError):  # permanent, such as a read-only Zarr store
            self._stamped[path] = now
        else:
            self._stamped[path] = now
            return True
        return False

    def _forget_old(self, now: float) -> None:
        """Forget stamps that have no effect any more, now and then: a service reads entries for months."""
        if now - self._tidied >= GRACE:
            self._stamped = {path: then for path, then in list(self._stamped.items()) if now - then < GRACE / 2}
            self._tidied = now

    def last(self, path: str) -> float:
        """Time of last use, seconds since 1970. An entry without a stamp counts as used now, and is stamped."""
        now, used = time.time(), math.inf
        with suppress(MissingEntry, ValueError):
            used = float(self._objects.get(_key(path)))
        if used < now + GRACE:  # else a clock ran ahead, and it would stay for ever
            return used
        self._stamped.pop(path, None)
        self.stamp(path)
        return now

    def forget(self, path: str) -> None:
        """Remove the stamp of an entry that is gone."""
        self._objects.remove(_key(path))
        self._stamped.pop(path, None)


def _key(path: str) -> str:
    return f"{USES}/{path}"
