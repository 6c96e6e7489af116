"""Making room: the least recently used entries are removed first, and none that is being read or made.

Readers stamp an entry before they open it, or look again afterwards (``store.uses``). An entry is removed under its
claim, so that nobody makes it meanwhile: its marker is removed, its stamp is read again, and its data are removed. A
reader that came before that second look is noticed, and the marker is put back; one that comes later finds no entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from store.claims import Claims
from store.collection import LABELS
from store.errors import MissingEntry
from store.feature_store import FeatureStore
from store.features import Key, entry_path
from store.parallel import in_parallel
from store.spec import FeatureSpec
from store.uses import GRACE


class StoredEntry(NamedTuple):
    """An entry with its size in bytes and the time of its last use (seconds since 1970)."""

    spec: FeatureSpec
    key: Key
    bytes: int
    used: float
    complete: bool


def stored_entries(store: FeatureStore, specs: Iterable[FeatureSpec]) -> list[StoredEntry]:
    """All entries of some specs: incomplete ones first, then the least recently used first."""
    entries = [(spec, key) for spec in specs for key in store.all_keys(spec)]
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
    """The entries to remove, in the order given.

    Entries that were used within ``GRACE`` seconds always stay; of the others, incomplete ones are always removed.

    Args:
        entries: all entries, in the order of ``stored_entries``.
        max_bytes: total size that may stay.
        older_than: seconds; entries whose last use is longer ago are removed.
        now: seconds since 1970; the current time if None.
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
    """Remove entries, except those read or made since they were listed, and return the removed ones."""
    removed = []
    with Claims(store.objects) as claims:
        listed = list(entries)
        for entry, is_removed in zip(listed, in_parallel(partial(_remove_claimed, store, claims), listed), strict=True):
            removed += [entry] if is_removed else []
            if advance is not None:
                advance()
    return removed


def incomplete_masks(store: FeatureStore) -> list[str]:
    """Digests of masks without a marker: being written, or left by a killed run."""
    digests = store.collections.masks()
    whole = in_parallel(lambda digest: store.objects.exists(f"{LABELS}/{digest}/zarr.json"), digests)
    return [digest for digest, is_whole in zip(digests, whole, strict=True) if not is_whole]


def remove_masks(store: FeatureStore, digests: Iterable[str]) -> list[str]:
    """Remove incomplete masks, except those that are being written or whole by now; return the removed ones."""
    claims, removed = Claims(store.objects), list[str]()
    for digest in digests:
        path = f"{LABELS}/{digest}"
        if claims.acquire(path):
            if not store.objects.exists(f"{path}/zarr.json"):
                store.objects.delete(path)
                removed.append(digest)
            claims.release(path)
    return removed


def _remove_claimed(store: FeatureStore, claims: Claims, entry: StoredEntry) -> bool:
    """Remove an entry under its claim, and return whether that was possible."""
    path = entry_path(entry.spec, entry.key)
    if not claims.acquire(path):
        return False
    try:
        return _remove(store, path, entry)
    finally:
        claims.release(path)


def _remove(store: FeatureStore, path: str, entry: StoredEntry) -> bool:
    if store.has(entry.spec, entry.key) != entry.complete or store.uses.last(path) != entry.used:
        return False
    marker = store.objects.get(f"{path}/zarr.json") if entry.complete else None
    store.objects.remove(f"{path}/zarr.json")
    if store.uses.last(path) != entry.used:
        if marker is not None:
            store.objects.put(f"{path}/zarr.json", marker)
        return False
    store.objects.delete(path)
    store.uses.forget(path)
    return True


def _bytes_below(store: FeatureStore, path: str) -> int:
    total = 0
    for key in store.objects.keys(path):
        with suppress(MissingEntry):  # a temporary file that its writer has since renamed
            total += store.objects.size(key)
    return total
