"""Making room: the entries that were used least recently go first, and none that is being read.

Readers stamp an entry before they open it (``store.uses``). An entry is taken away in three steps:
its marker goes, its stamp is looked at once more, its bytes go. A reader that came before the second
step is seen there, and the marker is put back; one that comes later finds no entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from store.errors import MissingEntry
from store.feature_store import FeatureStore, Key, entry_path
from store.spec import FeatureSpec
from store.uses import GRACE


class Stored(NamedTuple):
    """An entry with its size and when it was last used (seconds since 1970; 0 if nobody knows)."""

    spec: FeatureSpec
    key: Key
    bytes: int
    used: float
    complete: bool


def stored_entries(store: FeatureStore, specs: Iterable[FeatureSpec]) -> list[Stored]:
    """All entries of some specs, the least recently used first."""
    found = []
    for spec in specs:
        for key in store.keys(spec):
            size = store.stored_bytes(spec, key)
            path = entry_path(spec, key)
            on_disk = size if size is not None else sum(store.objects.size(k) for k in store.objects.keys(path))
            found.append(Stored(spec, key, on_disk, store.uses.last(path), size is not None))
    return sorted(found, key=lambda entry: (entry.complete, entry.used, entry.key))


def to_prune(
    entries: list[Stored], *, max_bytes: int | None = None, older_than: float | None = None, now: float | None = None
) -> list[Stored]:
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


def prune(store: FeatureStore, entries: Iterable[Stored], advance: Callable[[], None] | None = None) -> list[Stored]:
    """Remove entries, but those that somebody began to read since they were listed; returns what was removed."""
    removed = []
    for entry in entries:
        if _remove(store, entry):
            removed.append(entry)
        if advance is not None:
            advance()
    return removed


def _remove(store: FeatureStore, entry: Stored) -> bool:
    path = entry_path(entry.spec, entry.key)
    try:
        marker = store.objects.get(f"{path}/zarr.json")
    except MissingEntry:
        marker = None
    store.objects.remove(f"{path}/zarr.json")
    if store.uses.last(path) != entry.used:
        if marker is not None:
            store.objects.put(f"{path}/zarr.json", marker)
        return False
    store.objects.delete(path)
    store.uses.forget(path)
    return True
