"""Who may ask, and how much: API keys, their rates, and how many requests at once."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic import SecretStr

from service.errors import Busy, TooManyRequests, Unauthorised

ANYBODY = "anybody"


class Keys:
    """API keys by name; only their sha256 is held.

    Args:
        keys: {name: its keys, each as it is or as ``sha256:`` and its sha256 in hexadecimal}; without any, everybody is
            let in.
    """

    def __init__(self, keys: Mapping[str, Sequence[SecretStr]]) -> None:
        self._hashes = [(name, _hash(one.get_secret_value())) for name, secrets in keys.items() for one in secrets]

    def name_of(self, presented: str | None) -> str:
        """The name of the key that was presented; every key is compared, in constant time.

        Raises:
            Unauthorised: none, or one that is not known.
        """
        if not self._hashes:
            return ANYBODY
        if not presented:
            raise Unauthorised("expected an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        offered = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = [name for name, known in self._hashes if hmac.compare_digest(offered, known)]
        if not found:
            raise Unauthorised("this API key is not known")
        return found[0]


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers, which clients send as UTF-8 and which are handed over as if they were Latin-1."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" and token else headers.get("x-api-key")
    return None if presented is None else presented.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


class Admission:
    """Limits of each key, and of all together.

    Args:
        rate: requests a minute of each key, as many at once after a pause; 0 for any number.
        at_once: requests of one key at the same time; 0 for any number.
        total: requests of all at the same time.
    """

    def __init__(self, rate: float, at_once: int, total: int) -> None:
        self._rate, self._at_once, self._total = rate, at_once, total
        self._buckets: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def admitted(self, name: str) -> Iterator[None]:
        """A place for one request of a key.

        Raises:
            TooManyRequests: the key's limits are used up.
            Busy: the service's are.
        """
        with self._lock:
            self._take_token(name)
            running = self._running.get(name, 0)
            if self._at_once and running >= self._at_once:
                raise TooManyRequests(f"{running} requests of this key are being answered, no more are taken")
            if sum(self._running.values()) >= self._total:
                raise Busy(f"{self._total} requests are being answered, no more are taken; ask again later")
            self._running[name] = running + 1
        try:
            yield
        finally:
            with self._lock:
                self._running[name] -= 1

    def _take_token(self, name: str) -> None:
        """One request from a bucket that refills at the key's rate."""
        if not self._rate:
            return
        now, size = time.monotonic(), max(1.0, self._rate)
        tokens, last = self._buckets.get(name, (size, now))
        tokens = min(size, tokens + (now - last) * self._rate / 60)
        if tokens < 1:
            self._buckets[name] = tokens, now
            seconds = (1 - tokens) * 60 / self._rate
            raise TooManyRequests(f"more than {self._rate:g} requests a minute of this key", retry_after=seconds)
        self._buckets[name] = tokens - 1, now


def _hash(key: str) -> bytes:
    kind, _, digest = key.partition(":")
    if kind == "sha256":
        return bytes.fromhex(digest)
    return hashlib.sha256(key.encode()).digest()
