"""Whole objects of a Zarr store, read and written synchronously.

The one place that touches zarr's asynchronous store interface. Every ``put`` is atomic: local
files are renamed into place, object storage replaces objects as a whole.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from store.errors import FormatError, MissingEntry, StoreFull

T = TypeVar("T")


class Objects:
    """Keys and bytes below one location.

    Args:
        zarr_store: local folder, memory or any other Zarr store.
        location: for messages.
    """

    def __init__(self, zarr_store: Store, location: str) -> None:
        self.zarr_store = zarr_store
        self.location = location

    def get(self, key: str) -> bytes:
        """All bytes of one object; MissingEntry if there is none."""
        buffer = sync(self.zarr_store.get(key, default_buffer_prototype()))
        if buffer is None:
            raise MissingEntry(f"{self.location}: no object {key}")
        return buffer.to_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write or replace one object; StoreFull if there is no room."""
        try:
            sync(self.zarr_store.set(key, default_buffer_prototype().buffer.from_bytes(data)))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(
                    f"{self.location}: no room left while writing {key}; free some space and run the same command "
                    "again, it goes on where it stopped"
                ) from error
            raise

    def exists(self, key: str) -> bool:
        return sync(self.zarr_store.exists(key))

    def size(self, key: str) -> int:
        """Bytes of one object; MissingEntry if there is none."""
        try:
            return sync(self.zarr_store.getsize(key))
        except FileNotFoundError as error:
            raise MissingEntry(f"{self.location}: no object {key}") from error

    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted."""
        return sorted(name.rstrip("/") for name in sync(_collected(lambda: self.zarr_store.list_dir(prefix))))

    def remove(self, key: str) -> None:
        """Remove one object, if it is there."""
        sync(self.zarr_store.delete(key))

    def delete(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        sync(self.zarr_store.delete_dir(prefix))


async def _collected(start: Callable[[], AsyncIterator[T]]) -> list[T]:
    return [item async for item in start()]


def open_objects(location: str | Path | Store, *, read_only: bool = False) -> Objects:
    """Objects of a local folder, of ``memory://`` or of a Zarr store that was made elsewhere.

    Raises:
        MissingEntry: read-only, and the folder does not exist.
        FormatError: a URL of a kind that is not supported.
    """
    if isinstance(location, Store):
        return Objects(location, str(location))
    if str(location) == "memory://":
        return Objects(MemoryStore(), "memory://")
    if "://" in str(location):
        raise FormatError(f"{location}: expected a folder or memory://; pass other storage as a zarr Store")
    folder = Path(location).expanduser()
    if read_only and not folder.is_dir():
        raise MissingEntry(f"{folder}: no such store; `extractor run --dataset ... --store {folder}` makes it")
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"{folder}: is a file, expected a folder")
    return Objects(LocalStore(folder, read_only=read_only), str(folder))


def held_in_memory(zarr_store: MemoryStore) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of everything in a memory store, by key."""
    objects = Objects(zarr_store, "memory://")
    keys: list[str] = sync(_collected(zarr_store.list))
    for key in sorted(keys):
        with contextlib.suppress(MissingEntry):
            yield key, objects.get(key)
