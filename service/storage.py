"""The feature store as the service uses it: trouble with the store never prevents an answer.

A store that is full, read-only, damaged or unavailable costs a warning and another inversion. One that hangs
is left alone for a while, so that one request waits for the timeout and not every one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from service.errors import trouble_of
from service.metrics import Metrics
from service.room import Room
from store.claims import Claims
from store.codebook import Codebook
from store.errors import (
    DamagedEntry,
    FormatError,
    MissingEntry,
    SpecError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from store.feature_store import FeatureStore
from store.features import FeatureEntry, Features, Key, entry_path
from store.spec import FeatureSpec

logger = structlog.get_logger(__name__)
T = TypeVar("T")
LEAST_RATE = 10e6
"""Bytes per second that a store must read or write at least; a slower one counts as hanging."""
COOL_DOWN = 15.0
"""Seconds for which a store that did not answer is left alone."""


class Written(NamedTuple):
    """The outcome of storing features.

    Attributes:
        bytes: bytes written; 0 if another process is storing them, or if they could not be stored.
        trouble: why they could not be stored; None if they are, or are being stored by another process.
    """

    bytes: int
    trouble: str | None = None


class GuardedStore:
    """Reads and writes of a feature store that may be in trouble.

    Args:
        open_store: opens the store; called again while the store is unavailable.
        metrics: metrics that count failures.
        timeout: seconds until an operation is given up, plus those that its bytes take at ``LEAST_RATE``.
        memory_bytes: most bytes of entries written here to keep; beyond it the oldest are deleted. None keeps all.

    Raises:
        StoreError: the location cannot be used as a store. A store that is merely unavailable is not an error.
    """

    def __init__(
        self,
        open_store: Callable[[], FeatureStore],
        metrics: Metrics,
        timeout: float = 10.0,
        memory_bytes: int | None = None,
    ) -> None:
        self._open, self._metrics, self._timeout = open_store, metrics, timeout
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="store")
        self._store: FeatureStore | None = None
        self._registered: set[str] = set()
        self._troubles: dict[str, str] = {}
        self._blocked_until = 0.0
        self._probed = 0.0
        self._room = Room()
        self._kept = _EntryBudget(memory_bytes)
        try:
            self._guarded("open", self.store)
        except OSError as error:  # unavailable; tried again later
            if isinstance(error.__cause__, FormatError):
                raise error.__cause__ from None

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with the store: {"open", "read" or "write": problem}; empty if nothing is."""
        return dict(self._troubles)

    def store(self) -> FeatureStore:
        """Return the store itself, opened on first use."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def read(self, spec: FeatureSpec, key: Key) -> tuple[Features | None, str | None]:
        """Return a photograph's features, None if they have to be extracted; and the trouble with the store, if any."""
        try:
            return self._guarded("read", lambda: self._entry(spec, key).features(), spec.entry_bytes()), None
        except MissingEntry:
            return None, None
        except DamagedEntry as error:
            logger.warning("cached features are damaged and extracted again", problem=str(error))
            return None, "cached features were damaged and have been extracted again"
        except (StoreError, OSError) as error:
            logger.warning("the store cannot be read", problem=str(error.__cause__ or error))
            return None, "the feature store cannot be read"

    def stored_bytes(self, spec: FeatureSpec, key: Key) -> int | None:
        """Return the stored size of a photograph's features in bytes; None if there are none.

        Raises:
            StoreUnavailable: the store is unavailable.
        """
        return self._guarded("read", lambda: self.store().stored_bytes(spec, key))

    def block(self, spec: FeatureSpec, key: Key, block: str, timesteps: list[int] | None) -> NDArray[np.float32]:
        """Return one block of a photograph's features, float32 (t, c, h, w).

        Args:
            timesteps: timesteps to read; all if None.

        Raises:
            MissingEntry: there are no such features.
            DamagedEntry: the stored bytes are damaged.
            SpecError: the features have no such block or timestep.
            StoreUnavailable: the store is unavailable.
        """
        return self._guarded("read", lambda: self._entry(spec, key).read(block, timesteps), spec.entry_bytes())

    def write(
        self, spec: FeatureSpec, key: Key, features: Features, backbone: str, codebook: Codebook | None
    ) -> Written:
        """Store features, unless another process is storing them at the moment."""
        try:
            written = self._guarded(
                "write", lambda: self._write(spec, key, features, backbone, codebook), spec.entry_bytes()
            )
        except (StoreError, OSError) as error:
            if isinstance(error.__cause__, StoreFull):
                self._room.lacked(spec.entry_bytes())
            logger.warning("features could not be stored", problem=str(error.__cause__ or error))
            return Written(0, "features could not be stored; the next request has to extract them again")
        gone = self._kept.added(spec, key, written)
        self._kept.put_back([one for one in gone if not self.discard(one.spec, one.key)])  # the next write tries again
        return Written(written)

    def discard(self, spec: FeatureSpec, key: Key) -> bool:
        """Delete one entry, and return whether that succeeded; trouble is logged."""
        try:
            self._guarded("write", lambda: self.store().delete(spec, key))
        except (StoreError, OSError) as error:
            logger.warning("features could not be deleted", problem=str(error.__cause__ or error))
            return False
        return True

    def forget(self, spec: FeatureSpec, image_id: str) -> int:
        """Delete a photograph's features in every view; return the number of views deleted.

        Raises:
            StoreBusy: another process is writing some of them.
            StoreUnavailable: the store is unavailable.
        """
        self._kept.forget(spec, image_id)
        return self._guarded("write", lambda: self.store().delete_image(spec, image_id, min(5.0, self._timeout / 2)))

    def probe(self, every: float = COOL_DOWN) -> dict[str, str]:
        """Try a small write, at most once in ``every`` seconds; return the present troubles."""
        if time.monotonic() - self._probed >= every:
            self._probed = time.monotonic()
            with contextlib.suppress(OSError):
                self._guarded("write", self._require_room)
        return self.troubles

    def _require_room(self) -> None:
        objects = self.store().objects
        objects.require_writable()
        self._room.require(objects)

    def close(self) -> None:
        """Stop the threads, without waiting for operations that hang."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _entry(self, spec: FeatureSpec, key: Key) -> FeatureEntry:
        """Return a stored entry; MissingEntry names neither the store's location nor specs that have the entry."""
        found = self.store().find(spec, key)
        if found is None:
            raise MissingEntry("not there")
        return found

    def _write(self, spec: FeatureSpec, key: Key, features: Features, backbone: str, codebook: Codebook | None) -> int:
        store = self.store()
        claims = Claims(store.objects)
        if spec.digest not in self._registered or not store.is_registered(spec):  # it may have been deleted meanwhile
            store.register(spec, backbone, codebook)
            self._registered.add(spec.digest)
        path = entry_path(spec, key)
        if not claims.acquire(path):
            return 0
        try:
            written = store.write(spec, key, features)
            self._room.found(spec.entry_bytes(), store.objects)
            return written
        finally:
            claims.release(path)

    def _guarded(self, doing: str, work: Callable[[], T], size: int = 0) -> T:
        """Return the result of work on the store; raises StoreUnavailable if the store fails or is too slow.

        A store that does not answer, or is unavailable, is not asked again for ``COOL_DOWN`` seconds.

        Args:
            doing: name of the operation in troubles and metrics: open, read or write.
            size: bytes that are read or written, which extend the timeout.
        """
        if time.monotonic() < self._blocked_until:
            raise StoreUnavailable(self._troubles.get(doing) or "the feature store did not answer a moment ago")
        future, timeout = self._pool.submit(work), self._timeout + size / LEAST_RATE
        if not wait([future], timeout).done:
            future.cancel()  # if it was not begun, its features are freed
            raise self._failed(doing, f"no answer within {timeout:.0f} s", cool_down=True)
        try:
            result = future.result()
        except StoreFull as error:
            raise self._failed(doing, trouble_of(error), cool_down=False) from error
        except StoreUnavailable as error:
            raise self._failed(doing, trouble_of(error), cool_down=True) from error
        except (MissingEntry, DamagedEntry):
            self._troubles.pop(doing, None)
            raise
        except (SpecError, StoreBusy):  # not trouble of the store
            raise
        except (StoreError, OSError) as error:
            raise self._failed(doing, trouble_of(error), cool_down=isinstance(error, TimeoutError)) from error
        for over in (doing, "open"):
            self._troubles.pop(over, None)
        return result

    def _failed(self, doing: str, why: str, *, cool_down: bool) -> OSError:
        self._troubles[doing] = why
        self._metrics.store_failures.labels(doing).inc()
        if cool_down:
            self._blocked_until = time.monotonic() + COOL_DOWN
        return StoreUnavailable(why)


class _Kept(NamedTuple):
    spec: FeatureSpec
    key: Key
    size: int

    @property
    def name(self) -> tuple[str, Key]:
        return self.spec.digest, self.key


class _EntryBudget:
    """The entries written so far, oldest first, for a store whose size has a limit in bytes; None: no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[str, Key], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def forget(self, spec: FeatureSpec, image_id: str) -> None:
        """Forget a photograph's entries, which are being deleted otherwise."""
        with self._lock:
            for name in [name for name in self._entries if name[0] == spec.digest and name[1].image_id == image_id]:
                del self._entries[name]

    def put_back(self, entries: Sequence[_Kept]) -> None:
        """Record entries that could not be deleted, oldest first, as older than all others."""
        with self._lock:
            for one in reversed(entries):
                if one.name not in self._entries:  # else it was written again meanwhile
                    self._entries[one.name] = one
                    self._entries.move_to_end(one.name, last=False)

    def added(self, spec: FeatureSpec, key: Key, size: int) -> list[_Kept]:
        """Record an entry that was written, and return those that have to be deleted for it, oldest first."""
        if self._limit is None or not size:
            return []
        gone, new = list[_Kept](), _Kept(spec, key, size)
        with self._lock:
            self._entries[new.name] = new
            while len(self._entries) > 1 and sum(one.size for one in self._entries.values()) > self._limit:
                gone.append(self._entries.popitem(last=False)[1])
        return gone
