"""The precision of float32 arithmetic on CUDA devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SWITCHED = threading.RLock()


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Convolve in full float32 within this context: by default cuDNN rounds to ten bits (TF32), and an inversion
    amplifies the errors."""
    if device.type != "cuda":
        yield
        return
    # This switch exists since torch 2.9, where reading the former flag (allow_tf32) may raise.
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    switch, name, exact = (
        (convolutions, "fp32_precision", "ieee") if convolutions else (torch.backends.cudnn, "allow_tf32", False)
    )
    with _SWITCHED:
        before = getattr(switch, name)
        setattr(switch, name, exact)
        try:
            yield
        finally:
            setattr(switch, name, before)
