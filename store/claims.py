"""Claims: which process is making which entry, so that no two make the same one.

A claim is an object that only one process can create. It names its owner and is renewed while the
owner lives. The claim of a process that died is given up: at once where the process ran on this
machine, else when it has not been renewed for ``lease`` seconds. Whoever takes over creates the
successor that is named after the dead claim's token; of several, one succeeds.

    <store>/claims/<name>            the first claim
    <store>/claims/<name>@<token>    its successor, where the first one's owner died
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from store.errors import MissingEntry, StoreError
from store.objects import Objects

CLAIMS = "claims"
LEASE = 120.0
"""Seconds. Machines that share a store should agree on the time better than this."""


class Claims:
    """The claims of one process; a context in which they are renewed, and behind which they are released.

    Without the context nothing is renewed, which is enough for work that takes less than a lease.

    Args:
        objects: where they are kept.
        lease: seconds without renewal after which a claim of another machine is dead.
    """

    def __init__(self, objects: Objects, lease: float = LEASE) -> None:
        self._objects, self._lease = objects, lease
        self._held: dict[str, tuple[list[str], str]] = {}  # name: keys of its chain, token
        self._unreadable: dict[str, float] = {}  # token of a claim that cannot be read: when it was first seen
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
            with suppress(StoreError, OSError):  # the lease will end them
                self.release(name)

    def take(self, name: str) -> bool:
        """Whether the claim is ours now; False while somebody, this process included, holds it."""
        with self._lock:
            if name in self._held:
                return False
        token = uuid.uuid4().hex
        chain = [f"{CLAIMS}/{name}"]
        while not self._objects.create(chain[-1], _claim(token)):
            holder = self._holder(chain[-1])
            if holder is None:
                if len(chain) > 1:
                    return False  # the successor has just been released, and what it guarded is done
                continue  # released in between: try again
            if self._lives(holder):
                return False
            chain.append(f"{CLAIMS}/{name}@{holder['token']}")
        with self._lock:
            self._held[name] = chain, token
        return True

    def release(self, name: str) -> None:
        """Give a claim up, whether its work was done or not."""
        with self._lock:
            chain, token = self._held.pop(name)
            if not self._still_ours(name, chain, token):
                return  # this process slept longer than its lease; whoever took over frees the whole chain
            for key in chain:  # the first one first: from then on the name is free
                self._objects.remove(key)

    def is_ours(self, name: str) -> bool:
        """Whether a claim that was taken has not been taken over since."""
        with self._lock:
            chain, token = self._held.get(name, ([], ""))
        return bool(chain) and self._still_ours(name, chain, token)

    def _still_ours(self, name: str, chain: list[str], token: str) -> bool:
        """Whether nobody has taken a claim over: the end of its chain is ours, and nobody follows."""
        return self._is(chain[-1], token) and not self._objects.exists(f"{CLAIMS}/{name}@{token}")

    def is_held(self, name: str) -> bool:
        """Whether a living process, this one included, holds the claim."""
        key = f"{CLAIMS}/{name}"
        while (holder := self._holder(key)) is not None:
            if self._lives(holder):
                return True
            key = f"{CLAIMS}/{name}@{holder['token']}"
        return False

    @contextmanager
    def waiting(self, name: str, seconds: float = LEASE) -> Iterator[None]:
        """Hold a claim, as soon as whoever holds it is done.

        Raises:
            StoreError: not within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not self.take(name):
            if time.monotonic() > deadline:
                raise StoreError(f"{self._objects.location}: another process has been at {name} for {seconds:.0f} s")
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release(name)

    def _holder(self, key: str) -> dict[str, Any] | None:
        """What a claim says; None if it is gone. One that cannot be read gets a name by its bytes."""
        try:
            data = self._objects.get(key)
        except MissingEntry:
            return None
        with suppress(ValueError, KeyError, TypeError):
            holder = json.loads(data)
            return {"token": str(holder["token"]), "machine": str(holder["machine"])} | {
                "process": int(holder["process"]),
                "renewed": float(holder["renewed"]),
            }
        token = hashlib.sha256(key.encode() + data).hexdigest()[:32]
        seen = self._unreadable.setdefault(token, time.time())
        return {"token": token, "machine": "", "process": 0, "renewed": seen}

    def _is(self, key: str, token: str) -> bool:
        holder = self._holder(key)
        return holder is not None and holder["token"] == token

    def _lives(self, holder: dict[str, Any]) -> bool:
        if holder["machine"] == _machine() and not _runs(holder["process"]):
            return False
        return time.time() - float(holder["renewed"]) < self._lease

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._lease / 4):
            with self._lock:
                for chain, token in self._held.values():
                    with suppress(StoreError, OSError):  # the next renewal may succeed
                        self._objects.put(chain[-1], _claim(token))


def _claim(token: str) -> bytes:
    claim = {"token": token, "machine": _machine(), "process": os.getpid(), "renewed": time.time()}
    return json.dumps(claim).encode()


def _machine() -> str:
    """This machine since it was started, or the container on it within which process numbers are unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there and belongs to somebody else
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
