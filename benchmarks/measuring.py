"""Measurements that several benchmarks share: time, peak memory and the device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def say(message: str) -> None:
    """Print progress to stderr; stdout is kept for results."""
    print(message, file=sys.stderr, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, including the work it queued on the GPU."""
    started = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Peak resident bytes of this process, read from /proc.

    ``getrusage`` is no alternative, since its maximum starts from that of the parent process.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
