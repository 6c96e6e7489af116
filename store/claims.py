"""Claims: which process is making which entry, so that no two make the same one.

A claim is an object that only one process can create. It names its owner and is renewed while the
owner lives. The claim of a process that died is given up: at once where the process ran on this
machine, else when it has not been renewed for ``lease`` seconds. Whoever takes over creates the
successor that is named after the dead claim's token; of several, one succeeds.

    <store>/claims/<name>            the first claim
    <store>/claims/<name>@<token>    its successor, where the first one's owner died
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
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

    Args:
        objects: where they are kept.
        lease: seconds without renewal after which a claim of another machine is dead.
    """

    def __init__(self, objects: Objects, lease: float = LEASE) -> None:
        self._objects, self._lease = objects, lease
        self._held: dict[str, tuple[list[str], str]] = {}  # name: keys of its chain, token
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
            try:
                holder = json.loads(self._objects.get(chain[-1]))
            except MissingEntry:
                if len(chain) > 1:
                    return False  # the successor has just been released, and what it guarded is done
                continue  # released in between: try again
            except ValueError:
                return False  # being written at this moment
            if self._lives(holder):
                return False
            chain.append(f"{CLAIMS}/{name}@{holder['token']}")
        with self._lock:
            self._held[name] = chain, token
        return True

    def release(self, name: str) -> None:
        """Give a claim up, whether its work was done or not."""
        with self._lock:
            chain, _ = self._held.pop(name)
            for key in chain:  # the first one first: from then on the name is free
                self._objects.remove(key)

    def _lives(self, holder: dict[str, Any]) -> bool:
        if holder["machine"] == _machine() and not _runs(int(holder["process"])):
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
    """This machine, or the container on it within which process numbers are unique."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.exists() else ''}".strip()


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
