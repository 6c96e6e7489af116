"""Authentication by API keys, rate limits, and limits of concurrent requests."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

from pydantic import SecretStr

from service.errors import Busy, TooManyRequests, Unauthorised

ANYBODY = "anybody"


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Keys:
    """The API keys that are accepted, by name; only their sha256 digests are held.

    Args:
        keys: {name: its keys, each in plain text or as ``sha256:`` and the digest in hexadecimal}; without any key,
            every request is accepted.
    """

    def __init__(self, keys: Mapping[str, Sequence[SecretStr]]) -> None:
        self._hashes = [(name, key_digest(one)) for name, secrets in keys.items() for one in secrets]

    def name_of(self, presented: str | None) -> str:
        """The name of the presented key; it is compared with every key, in constant time.

        Raises:
            Unauthorised: no key was presented, or an unknown one.
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
    """The key in a request's headers; None without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" and token else headers.get("x-api-key")
    return None if presented is None else as_utf8(presented)


def as_utf8(header: str) -> str:
    """A header's value as it was sent in UTF-8: Starlette decodes headers as Latin-1."""
    return header.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


class Admission:
    """Rate and concurrency limits of each key, and the concurrency limit of all together.

    Args:
        rate: requests per minute of each key, which is also the largest burst; 0 for no limit.
        at_once: concurrent requests of one key; 0 for no limit.
        total: concurrent requests of all keys.
    """

    def __init__(self, rate: float, at_once: int, total: int) -> None:
        self._rate, self._at_once, self._total = rate, at_once, total
        self._buckets: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, name: str) -> Iterator[None]:
        """Count a request of a key as running inside the context.

        Raises:
            TooManyRequests: a limit of the key is reached.
            Busy: the limit of all keys together is reached.
        """
        with self._lock:
            self._take_token(name)
            running = self._running.get(name, 0)
            if self._at_once and running >= self._at_once:
                raise TooManyRequests(
                    f"{running} requests of this key are being answered, which is its limit; ask again later"
                )
            if sum(self._running.values()) >= self._total:
                raise Busy(
                    f"{self._total} requests are being answered, which is the limit of the service; ask again later"
                )
            self._running[name] = running + 1
        try:
            yield
        finally:
            with self._lock:
                self._running[name] -= 1

    def _take_token(self, name: str) -> None:
        """Take one token from the key's bucket, which refills at the key's rate; TooManyRequests if it is empty."""
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


def key_digest(key: SecretStr) -> bytes:
    """The sha256 of an API key, which is given in plain text or as ``sha256:`` and the digest in hexadecimal."""
    kind, _, digest = key.get_secret_value().partition(":")
    if kind == "sha256":
        return bytes.fromhex(digest)
    return hashlib.sha256(key.get_secret_value().encode()).digest()
