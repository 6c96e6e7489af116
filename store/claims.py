"""Claims: leases that say which process is making which entry, so that no two make the same one.

A claim is an object that only one process can create. It names its owner, which renews it while it
lives. A claim is dead at once if its owner ran on this machine and is gone, and in any case when it
has not been renewed for ``lease`` seconds. A process that takes over a dead claim creates its
successor, which is named after the dead claim's token; of several processes, one succeeds.

    <store>/claims/<name>            the first claim
    <store>/claims/<name>@<token>    the successor of the dead claim with that token
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from store.errors import MissingEntry, StoreBusy, StoreError
from store.objects import Objects

CLAIMS = "claims"
LEASE = 120.0
"""Seconds without renewal after which a claim is dead. Clocks of machines that share a store must differ by less."""

_FIRST_SEEN: dict[tuple[str, str], float] = {}
"""{(location, identity of a claim without a usable time): when this process saw it first}"""

MAX_VANISHED = 100
"""Attempts to take a claim that each found it taken and then gone, before ``Claims.acquire`` gives up."""


@dataclass
class _Held:
    """A claim of this process. Its own lock is held while it is read or written, so that no claim waits for another.

    Attributes:
        chain: keys from the first claim to ours.
        token: identifies our claim.
        released: True once it must not be written any more.
    """

    chain: list[str]
    token: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: bool = False


class Claims:
    """The claims of one process; as a context manager, it renews them inside the context and releases them at its end.

    Outside a context nothing is renewed, which is enough for work that takes less than a lease.

    Args:
        objects: the store's objects, where the claims are kept.
        lease: seconds without renewal after which a claim is dead.
    """

    def __init__(self, objects: Objects, lease: float = LEASE) -> None:
        self._objects, self._lease = objects, lease
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewal = threading.Thread(target=self._renew_until_stopped, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewal.join()
        for name in list(self._held):
            with suppress(StoreError, OSError):  # they end with their lease
                self.release(name)

    def acquire(self, name: str) -> bool:
        """Try to take a claim and return whether it is ours now: not while anybody, this process included, holds it."""
        with self._lock:
            if name in self._held:
                return False
        token = uuid.uuid4().hex
        chain, dead, vanished = [f"{CLAIMS}/{name}"], list[str](), 0
        while not self._create_end(chain, dead, token):
            holder = self._holder(chain[-1])
            if holder is None:
                if len(chain) > 1:
                    return False  # the successor has just been released, and what it guarded is done
                vanished += 1  # released in between: try again
                if vanished == MAX_VANISHED:
                    raise StoreError(f"{self._objects.location}: {chain[0]} can neither be made nor read")
                time.sleep(0.01)
                continue
            if self._is_alive(holder):
                return False
            dead.append(holder["token"])
            chain.append(f"{CLAIMS}/{name}@{dead[-1]}")
        with self._lock:
            self._held[name] = _Held(chain, token)
        return True

    def _create_end(self, chain: list[str], dead: list[str], token: str) -> bool:
        """Create the end of a chain; return whether that succeeded and the claims before it are still the dead ones.

        Somebody else may have taken over and released the whole chain in between. Then the name is free, or taken, and
        a successor of claims that are gone would guard nothing: ``chain`` and ``dead`` start over at the first claim.
        """
        while self._objects.create(chain[-1], _claim(token)):
            if all(self._has_token(key, theirs) for key, theirs in zip(chain, dead, strict=False)):
                return True
            self._objects.remove(chain[-1])
            del chain[1:], dead[:]
        return False

    def release(self, name: str) -> None:
        """Release a claim, whether its work was done or not."""
        with self._lock:
            held = self._held.pop(name)
        with held.lock:  # a renewal in progress would write the claim again
            held.released = True
            if not self._still_ours(name, held):
                return  # this process slept longer than its lease; whoever took over releases the whole chain
            for key in held.chain:  # in this order, since the name is free once the first one is gone
                self._objects.remove(key)

    def is_ours(self, name: str) -> bool:
        """Return whether this process took a claim, still holds it, and nobody has taken it over."""
        with self._lock:
            held = self._held.get(name)
        return held is not None and self._still_ours(name, held)

    def _still_ours(self, name: str, held: _Held) -> bool:
        """Return whether nobody has taken over a claim: the end of its chain is ours and has no successor."""
        ours = self._has_token(held.chain[-1], held.token)
        return ours and not self._objects.exists(f"{CLAIMS}/{name}@{held.token}")

    def is_held(self, name: str) -> bool:
        """Return whether a living process, this one included, holds the claim."""
        key = f"{CLAIMS}/{name}"
        while (holder := self._holder(key)) is not None:
            if self._is_alive(holder):
                return True
            key = f"{CLAIMS}/{name}@{holder['token']}"
        return False

    @contextmanager
    def acquired(self, name: str, seconds: float = LEASE) -> Iterator[None]:
        """Hold a claim in this context, after waiting until its holder releases it or dies.

        Raises:
            StoreBusy: it did not become free within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not self.acquire(name):
            if time.monotonic() > deadline:
                raise StoreBusy(f"{self._objects.location}: another process has held {name} for {seconds:.0f} s")
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release(name)

    def _holder(self, key: str) -> dict[str, Any] | None:
        """The contents of a claim; None if it is gone.

        One whose time lies in the future (a clock ran ahead) counts from when it was written, or first seen, and so
        does an unreadable one, which gets a token from its key and bytes.
        """
        try:
            data = self._objects.get(key)
        except MissingEntry:
            return None
        identity = hashlib.sha256(key.encode() + data).hexdigest()[:32]
        holder: dict[str, Any] = {"token": identity, "machine": "", "process": 0, "renewed": math.inf}
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(data)
            holder = {"token": str(found["token"]), "machine": str(found["machine"])} | {
                "process": int(found["process"]),
                "renewed": float(found["renewed"]),
            }
        if not holder["renewed"] < time.time() + self._lease:
            holder["renewed"] = self._first_seen(key, identity)
        return holder

    def _first_seen(self, key: str, identity: str) -> float:
        """When a claim of these bytes was written; where that cannot be known, when this process first saw it."""
        now, written = time.time(), self._objects.modified(key)
        if written is not None and written < now + self._lease:
            return written
        return _FIRST_SEEN.setdefault((self._objects.location, identity), now)

    def _has_token(self, key: str, token: str) -> bool:
        holder = self._holder(key)
        return holder is not None and holder["token"] == token

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if holder["machine"] == _machine() and not _process_exists(holder["process"]):
            return False
        return time.time() - float(holder["renewed"]) < self._lease

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._lease / 4):
            with self._lock:
                all_held = list(self._held.items())
            for name, held in all_held:
                with held.lock, suppress(StoreError, OSError):  # the next renewal may succeed
                    if held.released:
                        continue
                    if self._still_ours(name, held):
                        self._objects.put(held.chain[-1], _claim(held.token))
                    else:  # this process slept longer than its lease; the claim may be another one's by now
                        held.released = True


def _claim(token: str) -> bytes:
    claim = {"token": token, "machine": _machine(), "process": os.getpid(), "renewed": time.time()}
    return json.dumps(claim).encode()


def _machine() -> str:
    """Name of this machine since its last boot, or of the container on it in which process numbers are unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to another user
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
