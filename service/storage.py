"""The feature store as the service needs it: never a reason not to answer.

A store that is full, read-only, damaged or away costs a warning and the next inversion. One that hangs
is left alone for a while, so that it costs one request its patience and not every one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from service.metrics import Metrics
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
"""Bytes in a second that a store which is slow, and does not hang, reads or writes."""
REST = 15.0
"""Seconds that a store is left alone that did not answer."""


class Storage:
    """Reads and writes of a feature store that may be in trouble.

    Args:
        open_store: makes the store; tried again while it is away.
        metrics: failures are counted there.
        timeout: seconds until an operation is given up.
        memory_bytes: the oldest entries are removed beyond so many; None keeps everything.

    Raises:
        StoreError: the place is none for a store; one that is only away is no error.
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
        self._rests_until = 0.0
        self._probed = 0.0
        self._no_room_for = 0  # bytes of an entry that did not fit
        self._kept = _Kept(memory_bytes)
        try:
            self._guarded("open", self.store)
        except OSError as error:  # away; it is tried again
            if isinstance(error.__cause__, FormatError):
                raise error.__cause__ from None

    @property
    def troubles(self) -> dict[str, str]:
        """{"read" or "write": what is wrong with it}; empty if nothing is."""
        return dict(self._troubles)

    def store(self) -> FeatureStore:
        """The store itself."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def read(self, spec: FeatureSpec, key: Key, warnings: list[str]) -> Features | None:
        """The features of a photograph; None if they have to be made. Troubles become warnings."""
        try:
            features = self._guarded("read", lambda: self._entry(spec, key).features(), spec.entry_bytes())
        except MissingEntry:
            return None
        except DamagedEntry as error:
            logger.warning("cached features are damaged and made anew", problem=str(error))
            warnings.append("cached features were damaged and have been made anew")
            return None
        except (StoreError, OSError) as error:
            logger.warning("the store cannot be read", problem=str(error))
            warnings.append("the feature store cannot be read")
            return None
        return features

    def stored_bytes(self, spec: FeatureSpec, key: Key) -> int | None:
        """Stored bytes of a photograph's features; None if there are none. StoreUnavailable if that cannot be known."""
        return self._guarded("read", lambda: self.store().stored_bytes(spec, key))

    def block(self, spec: FeatureSpec, key: Key, block: str, timesteps: list[int] | None) -> NDArray[np.float32]:
        """One block, float32 (t, c, h, w).

        Raises:
            MissingEntry, DamagedEntry, SpecError: not there; StoreUnavailable: the store is away.
        """
        return self._guarded("read", lambda: self._entry(spec, key).read(block, timesteps), spec.entry_bytes())

    def write(
        self, spec: FeatureSpec, key: Key, features: Features, backbone: str, codebook: Codebook | None, warn: list[str]
    ) -> int | None:
        """Keep features, unless another process is just about to; bytes written.

        Returns:
            None if they could not be kept, which becomes a warning.
        """
        try:
            written = self._guarded(
                "write", lambda: self._write(spec, key, features, backbone, codebook), spec.entry_bytes()
            )
        except (StoreError, OSError) as error:
            if isinstance(error.__cause__, StoreFull):
                self._no_room_for = spec.entry_bytes()
            logger.warning("features could not be stored", problem=str(error))
            warn.append("features could not be stored; the next request inverts again")
            return None
        self._no_room_for = 0
        for old_spec, old_key in self._kept.added(spec, key, written):
            self.store().delete(old_spec, old_key)
        return written

    def forget(self, spec: FeatureSpec, image_id: str) -> int:
        """Remove all that is kept of a photograph's features; how many views.

        Raises:
            StoreBusy: another process is making some. StoreUnavailable: the store is away.
        """
        self._kept.forget(spec, image_id)
        return self._guarded("write", lambda: self.store().delete_image(spec, image_id, min(5.0, self._timeout / 2)))

    def probe(self, every: float = REST) -> dict[str, str]:
        """Try to write something small, at most so often; the troubles there are."""
        if time.monotonic() - self._probed >= every:
            self._probed = time.monotonic()
            before = self._troubles.get("write")
            with contextlib.suppress(OSError):
                self._guarded("write", lambda: self.store().objects.require_writable())
                if before is not None and self._is_full():
                    self._troubles["write"] = before  # for a few bytes there is room
        return self.troubles

    def _is_full(self) -> bool:
        """Whether the entry that did not fit would not fit now, as far as that can be known."""
        if not self._no_room_for:
            return False
        free = self.store().objects.free_bytes()
        return free is None or free < self._no_room_for

    def close(self) -> None:
        """Wait for nothing that hangs."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _entry(self, spec: FeatureSpec, key: Key) -> FeatureEntry:
        """What is stored; asked for first, so that nothing is noted of what is not there, and no place is told."""
        store = self.store()
        if not store.has(spec, key):
            raise MissingEntry("not there")
        return store.entry(spec, key)

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
            store.remove_incomplete(spec, key)
            return store.write(spec, key, features)
        finally:
            claims.release(path)

    def _guarded(self, doing: str, work: Callable[[], T], size: int = 0) -> T:
        """The result of work on the store, in time; the store rests after it did not answer.

        Args:
            size: bytes that are read or written; for them there is more time.
        """
        if time.monotonic() < self._rests_until:
            raise StoreUnavailable(self._troubles.get(doing) or "the feature store did not answer a moment ago")
        future, patience = self._pool.submit(work), self._timeout + size / LEAST_RATE
        try:
            result = future.result(patience)
        except FutureTimeout as error:
            future.cancel()  # what was not begun holds its features no longer
            raise self._failed(doing, f"no answer within {patience:.0f} s", rest=True) from error
        except StoreFull as error:
            raise self._failed(doing, str(error), rest=False) from error
        except StoreUnavailable as error:
            raise self._failed(doing, str(error), rest=True) from error
        except (MissingEntry, DamagedEntry):
            self._troubles.pop(doing, None)
            raise
        except (SpecError, StoreBusy):  # of what was asked for, or of a store that is not what it was
            raise
        except (StoreError, OSError) as error:
            raise self._failed(doing, str(error), rest=False) from error
        for over in (doing, "open"):
            self._troubles.pop(over, None)
        return result

    def _failed(self, doing: str, why: str, *, rest: bool) -> OSError:
        self._troubles[doing] = why
        self._metrics.store_failures.labels(doing).inc()
        if rest:
            self._rests_until = time.monotonic() + REST
        return StoreUnavailable(why)


class _Kept:
    """What has been written, oldest first, where a memory has to stay bounded."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._sizes: OrderedDict[tuple[str, Key], tuple[FeatureSpec, int]] = OrderedDict()
        self._lock = threading.Lock()

    def forget(self, spec: FeatureSpec, image_id: str) -> None:
        """What is removed by others."""
        with self._lock:
            for one in [one for one in self._sizes if one[0] == spec.digest and one[1].image_id == image_id]:
                del self._sizes[one]

    def added(self, spec: FeatureSpec, key: Key, size: int) -> list[tuple[FeatureSpec, Key]]:
        """What has to go now."""
        if self._limit is None or not size:
            return []
        gone = []
        with self._lock:
            self._sizes[spec.digest, key] = spec, size
            while len(self._sizes) > 1 and sum(held for _, held in self._sizes.values()) > self._limit:
                (_, old_key), (old_spec, _) = self._sizes.popitem(last=False)
                gone.append((old_spec, old_key))
        return gone
