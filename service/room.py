"""Whether there is room in storage that had none for an object lately."""

from __future__ import annotations

from store.errors import StoreFull
from store.objects import Objects


class Room:
    """The last object that found no room in some storage: a few bytes may fit where it still would not."""

    def __init__(self) -> None:
        self._lacking = 0

    def lacked(self, size: int) -> None:
        """Record that there was no room for an object of ``size`` bytes."""
        self._lacking = size

    def found(self, size: int, objects: Objects) -> None:
        """Record that an object of ``size`` bytes was written."""
        if size >= self._lacking or objects.free_bytes() is None:
            self._lacking = 0

    def require(self, objects: Objects) -> None:
        """Raise StoreFull if that object would find no room now either, as far as this can be known."""
        if not self._lacking:
            return
        free = objects.free_bytes()
        if free is None or free < self._lacking:
            raise StoreFull(f"no room left for {self._lacking} bytes")
