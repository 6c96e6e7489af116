"""What several benchmarks measure alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def say(message: str) -> None:
    """Tell whoever waits, and not what is read by others."""
    print(message, file=sys.stderr, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """By the clock, what a GPU was given included."""
    started = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Resident bytes of this process at its peak.

    Not getrusage: what that calls the maximum begins with that of the parent process.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
