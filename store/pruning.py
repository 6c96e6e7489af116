"""Making room: the entries that were used least recently go first, and none that is being read or made.

Readers stamp an entry before they open it (``store.uses``). An entry is taken away under a claim, so that
nobody makes it meanwhile: its marker goes, its stamp is looked at once more, its bytes go. A reader that
came before the second look is seen there, and the marker is put back; one that comes later finds no entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from store.claims import Claims
from store.errors import MissingEntry
from store.feature_store import FeatureStore
from store.features import Key, entry_path
from store.parallel import in_parallel
from store.spec import FeatureSpec
from store.uses import GRACE


class StoredEntry(NamedTuple):
    """An entry with its size and when it was last used (seconds since 1970)."""

    spec: FeatureSpec
    key: Key
    bytes: int
    used: float
    complete: bool


def stored_entries(store: FeatureStore, specs: Iterable[FeatureSpec]) -> list[StoredEntry]:
    """All entries of some specs, the least recently used first."""
    entries = [(spec, key) for spec in specs for key in store.keys(spec)]
    found = in_parallel(lambda entry: _stored(store, *entry), entries)
    return sorted(found, key=lambda entry: (entry.complete, entry.used, entry.key))


def _stored(store: FeatureStore, spec: FeatureSpec, key: Key) -> StoredEntry:
    path, size = entry_path(spec, key), store.stored_bytes(spec, key)
    stored = _bytes_below(store, path) if size is None else size
    return StoredEntry(spec, key, stored, store.uses.last(path), size is not None)


def to_prune(
    entries: list[StoredEntry],
    *,
    max_bytes: int | None = None,
    older_than: float | None = None,
    now: float | None = None,
) -> list[StoredEntry]:
    """Which entries have to go, the least recently used first.

    Incomplete entries go in any case; whatever was used within ``GRACE`` seconds stays in any case.

    Args:
        entries: all of them, the least recently used first.
        max_bytes: what may stay, in all.
        older_than: seconds; whatever was not used for longer goes.
    """
    now = time.time() if now is None else now
    total = sum(entry.bytes for entry in entries)
    chosen = []
    for entry in entries:
        if now - entry.used < GRACE:
            continue
        too_much = max_bytes is not None and total > max_bytes
        too_old = older_than is not None and now - entry.used > older_than
        if not entry.complete or too_much or too_old:
            chosen.append(entry)
            total -= entry.bytes
    return chosen


def prune(
    store: FeatureStore, entries: Iterable[StoredEntry], advance: Callable[[], None] | None = None
) -> list[StoredEntry]:
    """Remove entries, but those that somebody reads or makes since they were listed; returns what was removed."""
    removed = []
    with Claims(store.objects) as claims:
        for entry in entries:
            path = entry_path(entry.spec, entry.key)
            if claims.take(path):
                if _remove(store, path, entry):
                    removed.append(entry)
                claims.release(path)
            if advance is not None:
                advance()
    return removed


def _remove(store: FeatureStore, path: str, entry: StoredEntry) -> bool:
    if store.has(entry.spec, entry.key) != entry.complete or store.uses.last(path) != entry.used:
        return False
    marker = store.objects.get(f"{path}/zarr.json") if entry.complete else None
    store.objects.remove(f"{path}/zarr.json")
    if store.uses.last(path) != entry.used:
        if marker is not None:
            store.objects.put(f"{path}/zarr.json", marker)
        return False
    store.delete(entry.spec, entry.key)
    return True


def _bytes_below(store: FeatureStore, path: str) -> int:
    total = 0
    for key in store.objects.keys(path):
        with suppress(MissingEntry):  # a file that its writer has renamed since
            total += store.objects.size(key)
    return total
